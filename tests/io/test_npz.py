import zipfile

import numpy as np
import pytest

from anomdino.io.npz import write_npz


def test_numpy_reads_what_was_written_and_bytes_repeat(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "arr_0": rng.normal(size=(37, 41)).astype(np.float32),
        "half": rng.normal(size=(3, 5, 7)).astype(np.float16)[:, ::2],
        "size": np.array([1, 2]),
        "empty": np.zeros((0, 4), np.float32),
    }
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert set(stored) == set(arrays)
        for name, array in arrays.items():
            assert stored[name].dtype == array.dtype
            np.testing.assert_array_equal(stored[name], array)


def test_members_are_stored_as_they_are(tmp_path):
    write_npz(tmp_path / "a.npz", {"a": np.zeros((500, 500)), "b": np.zeros(3)})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert [member.compress_type for member in archive.infolist()] == [zipfile.ZIP_STORED] * 2


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "a.npz", {"a": np.array([{}], dtype=object)})
