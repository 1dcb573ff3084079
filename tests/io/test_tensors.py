"""Files of tensors: what they hold, who may read them, and that nothing half-written stays."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anomdino.io.tensors import write_tensors


def test_tensors_and_texts_come_back_and_anyone_may_read_them(tmp_path):
    tensors = {"weight": torch.randn(3, 4), "count": torch.tensor(7), "half": torch.ones(2).half()}
    path = tmp_path / "new" / "model.safetensors"
    write_tensors(path, tensors, {"config": "{}"})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, framework="pt") as stored:
        assert stored.metadata() == {"config": "{}"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"weight": torch.ones(2)})
    shared = torch.zeros(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_tensors(path, {"a": shared, "b": shared})
    assert torch.equal(load_file(path)["weight"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
