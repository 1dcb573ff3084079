"""Score maps of any method: every format, and what is refused."""

import h5py
import numpy as np
import pytest
from PIL import Image

from anomdino.errors import DataError
from anomdino.io.maps import list_maps, read_map

SCORE = np.random.default_rng(0).normal(-8, 3, (6, 9)).astype(np.float32)


def write(path, score, *, key="arr_0", dataset="value"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{key: score})
    elif path.suffix == ".npy":
        np.save(path, score)
    elif path.suffix in {".tif", ".tiff"}:
        Image.fromarray(score).save(path)
    else:
        with h5py.File(path, "w") as stored:
            stored.create_dataset(dataset, data=score, compression=9)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".tif", ".tiff", ".hdf5", ".h5", ".NPZ"])
def test_every_format_gives_the_same_map(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix.lower()}", SCORE)
    path = path.rename(tmp_path / f"a{suffix}")
    read = read_map(path, (6, 9))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, SCORE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SCORE.astype(np.float16), SCORE.astype(np.float16).astype(np.float32)),
        (SCORE.astype(np.float64), SCORE),
        (SCORE[None], SCORE),
        (SCORE[None, ..., None], SCORE),
        ((SCORE * 1000).astype(np.int16), (SCORE * 1000).astype(np.int16).astype(np.float32)),
    ],
)
def test_other_number_types_and_axes_of_length_one(tmp_path, values, expected):
    np.testing.assert_array_equal(read_map(write(tmp_path / "a.npy", values), (6, 9)), expected)


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_with_count_and_range(tmp_path, pixel):
    bad = SCORE.copy()
    bad[2, 3:5] = pixel
    with pytest.raises(DataError, match="2 NaN or infinite"):
        read_map(write(tmp_path / "a.npz", bad))


@pytest.mark.parametrize(
    ("name", "values", "options", "reason"),
    [
        ("a.npz", SCORE, {"key": "score"}, "no array 'arr_0' but score"),
        ("a.hdf5", SCORE, {"dataset": "scores"}, "no dataset 'value' but scores"),
        ("a.npy", SCORE[:3], {}, "3 x 9, the image is 6 x 9"),
        ("a.npy", np.stack([SCORE] * 3), {}, "shape"),
        ("a.npy", SCORE.astype(np.uint8), {}, "8-bit"),
        ("a.npy", SCORE > 0, {}, "bool"),
        ("a.npy", SCORE.astype(complex), {}, "complex"),
        ("a.npy", np.array([[{}]], dtype=object), {}, "allow_pickle"),
    ],
)
def test_what_is_no_score_map_is_refused(tmp_path, name, values, options, reason):
    with pytest.raises(DataError, match=reason):
        read_map(write(tmp_path / name, values, **options), (6, 9))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".tiff", ".hdf5"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_damaged_files_are_refused(tmp_path, suffix, damage):
    path = write(tmp_path / f"a{suffix}", np.tile(SCORE, (40, 40)))
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"<html>no</html>"}[damage]
    )
    with pytest.raises(DataError, match=path.name):
        read_map(path)


def test_sizes_that_no_memory_holds_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.npy", SCORE)
    header = path.read_bytes().replace(b"(6, 9), }" + b" " * 12, b"(9999999, 9999999), }")
    path.write_bytes(header)
    with pytest.raises(DataError, match="a.npy"):
        read_map(path)
    write(tmp_path / "a.tif", SCORE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="too large"):
        read_map(tmp_path / "a.tif")


def test_colour_tiff_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="one channel"):
        read_map(tmp_path / "a.tif")


def test_maps_of_all_formats_are_listed_by_key(tmp_path):
    names = ("a.npz", "b/a.npy", "c.tif", "d.tiff", "e.hdf5", "f.h5")
    for name in names:
        write(tmp_path / name, SCORE)
    (tmp_path / "g.txt").touch()
    assert list_maps(tmp_path) == {name.rpartition(".")[0]: tmp_path / name for name in names}


def test_a_folder_without_maps_says_how_they_are_named(tmp_path):
    with pytest.raises(DataError, match=r"<key>\.npz or <key>\.npy"):
        list_maps(tmp_path)
