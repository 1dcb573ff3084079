"""Other methods' score maps in the place of a scorer's: pairs and parameters."""

import numpy as np
import pytest

from anomdino.config.score import ScoreConfig
from anomdino.errors import ConfigError, DataError
from anomdino.scorer.maps_source import MapsSource
from anomdino.scorer.setup import maps_from
from tests.io.test_maps import SCORE, write


def test_pairing_is_one_to_one(tmp_path):
    write(tmp_path / "x" / "a.npy", SCORE)
    write(tmp_path / "b.hdf5", SCORE)
    source = MapsSource(tmp_path, ["b", "x/a"])
    np.testing.assert_array_equal(source.read("x/a", (6, 9)), SCORE)
    with pytest.raises(DataError, match="1 images without a map: c"):
        MapsSource(tmp_path, ["b", "x/a", "c"])
    with pytest.raises(DataError, match="1 maps without an image: x/a"):
        MapsSource(tmp_path, ["b"])
    write(tmp_path / "b.npy", SCORE)
    with pytest.raises(DataError, match="same key 'b'"):
        MapsSource(tmp_path, ["b", "x/a"])
    with pytest.raises(DataError, match="not a folder"):
        MapsSource(tmp_path / "none", [])


def test_parameters_name_a_folder_for_every_set(tmp_path):
    write(tmp_path / "a.npy", SCORE)
    assert maps_from(ScoreConfig(), "train", ["a"]) is None
    config = ScoreConfig(source="maps", maps={"road": tmp_path})
    assert maps_from(config, "road", ["a"]).files.keys() == {"a"}
    with pytest.raises(ConfigError, match=r"score\.maps\.train"):
        maps_from(config, "train", ["a"])
