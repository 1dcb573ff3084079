"""`anomdino watch` on a camera of this machine."""

import json
import logging
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from anomdino.cli.main import app
from anomdino.errors import AnomdinoError
from tests.stream_server import Camera, picture, serving

pytest.importorskip("av")


@pytest.fixture
def camera():
    camera, rng = Camera(), np.random.default_rng(0)
    pictures = [picture(tuple(map(int, rng.integers(0, 255, 3)))) for _ in range(12)]

    def for_ever(send):
        while not camera.closing.wait(0.02):
            for each in pictures:
                send(each)

    camera.sessions = [for_ever]
    with serving(camera) as address:
        yield address


def watch(address, *arguments):
    asked = ["watch", address, *map(str, arguments), "--no-boxes", "--device", "cpu"]
    return CliRunner().invoke(app, asked)


def test_lines_on_standard_output_and_pictures_of_what_was_found(models, camera, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    everything = ["--threshold", "fixed:-1", "--min-component", 0]
    result = watch(
        camera, "--models", models, "--frames", 3, "-o", tmp_path / "out", "--keep", 2, *everything
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 3
    assert [line["frame"] for line in lines] == sorted({line["frame"] for line in lines})
    assert [line["anomaly_share"] for line in lines] == [1, 1, 1]
    kept = [f"{line['sighting']}.jpg" for line in lines[1:]]
    for kind in ("overlay", "photo"):
        assert sorted(file.name for file in (tmp_path / "out" / kind).iterdir()) == kept


def test_a_wrong_address_is_one_error(models, tmp_path):
    for address in (tmp_path / "film.mp4", "rtsp://127.0.0.1:1/a"):
        result = watch(str(address), "--models", models)
        assert isinstance(result.exception, AnomdinoError)


@pytest.mark.parametrize("how", ["terminated", "reader gone"])
def test_it_ends_in_peace(models, camera, how):
    program = [
        sys.executable,
        "-m",
        "anomdino.cli.main",
        "watch",
        camera,
        "--models",
        str(models),
        "--no-boxes",
    ]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert json.loads(process.stdout.readline())["frame"] >= 0
        if how == "reader gone":
            process.stdout.close()
        else:
            process.send_signal(signal.SIGTERM)  # Ctrl-C takes the same way
        errors = process.stderr.read()
        assert process.wait(20) == 0, errors
    finally:
        process.kill()
    assert "Traceback" not in errors
    assert "watch: " in errors
