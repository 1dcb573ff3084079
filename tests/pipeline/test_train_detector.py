"""The stage train_detector: killed at a later detector, it does not train those again that were done."""

import pytest
from typer.testing import CliRunner

from anomdino.config.params import load_params, profile_params, render_params
from anomdino.detector import runner as runner_module
from pipeline.train_detector import app
from tests.detector.conftest import composed, one_thread, small_config  # noqa: F401 - fixtures


@pytest.fixture
def project(composed, monkeypatch):  # noqa: F811 - the fixture
    """A folder with ``params.yaml`` and a composed set, where DVC would run the stage."""
    folder = composed.parent
    (folder / "data").mkdir()
    composed.rename(folder / "data/train_dataset")
    params = profile_params("demo")
    small = small_config(steps=1, val_interval=1, batch_size=1, backbone="none", decoder_layers=1)
    detect = params.detect.model_copy(update={"folds": 2})
    text = render_params(params.model_copy(update={"detector": small, "detect": detect, "device": "cpu"}))
    (folder / "params.yaml").write_text(text)
    assert load_params(folder / "params.yaml").detector == small
    monkeypatch.chdir(folder)
    return folder


def run_stage(monkeypatch, killed_at=None):
    """Run it; give its exit code, and which detector took which steps."""
    taken, before = [], runner_module.History.before_train_iter

    def noted(self, runner, *args, **kwargs):
        step = runner.experiment_name.split("_")[0], runner.iter  # mmengine adds the time to the name
        if step == killed_at:
            raise KeyboardInterrupt
        taken.append(step)
        before(self, runner, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner_module.History, "before_train_iter", noted)
        result = CliRunner().invoke(app, [])
    return result.exit_code, taken


def test_finished_detectors_survive_a_kill_though_dvc_removes_them(project, monkeypatch):
    code, taken = run_stage(monkeypatch, killed_at=("fold1", 0))
    assert code != 0
    assert taken == [("fold0", 0)]
    weights = project / "data/models/detector/fold0/model.safetensors"
    before = weights.read_bytes()
    for file in weights.parent.iterdir():
        file.unlink()
    code, taken = run_stage(monkeypatch)
    assert code == 0
    assert [name for name, _ in taken] == ["fold1", "final"]
    assert weights.read_bytes() == before
    folders = [weights.parent, weights.parents[1] / "fold1", weights.parents[1]]
    assert all((folder / "split.json").is_file() for folder in folders)
    assert not (project / "data/state/detector").exists()
