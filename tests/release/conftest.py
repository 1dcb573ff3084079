"""Drawn scenes and objects, and a released model beside them."""

import shutil

import pytest

from anomdino.io.images import write_png
from anomdino.scorer.efficientnet_lite import EfficientNetLite0
from anomdino.synthetic import outlier, scene
from pipeline import _material
from tests.release.tiny import tiny_release


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    for index in range(6):
        frame = scene("val", index, size=(96, 128))
        write_png(folder / "scenes/images" / f"{index}.png", frame.image)
        write_png(folder / "scenes/labels" / f"{index}.png", frame.label)
    for index in range(20):
        image, mask = outlier(index)
        write_png(folder / "objects/images" / f"{index:02d}.png", image)
        write_png(folder / "objects/masks" / f"{index:02d}.png", mask)
    return folder


@pytest.fixture
def sources(drawn, tmp_path):
    """`scenes/` and `objects/`, a copy for each test."""
    return shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def tiny(sources, monkeypatch):
    """``sources`` with the model `light/`; photos of objects may be small, and nothing starts from ImageNet."""
    monkeypatch.setattr(_material, "LEAST_WIDTH", 60)
    monkeypatch.setattr(EfficientNetLite0, "load_imagenet", lambda self: None)
    tiny_release(sources / "light", widths=[64])
    return sources
