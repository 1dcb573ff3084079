"""Score maps of any method: every format, and what is refused."""

import contextlib
import struct

import h5py
import numpy as np
import pytest
from PIL import Image

from anomdino.errors import DataError
from anomdino.io.maps import list_maps, read_map
from anomdino.io.scores import read_score

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
        ("a.npy", SCORE[:, :4], {}, "6 x 4, the image is 6 x 9"),
        ("a.npy", SCORE.T, {}, "9 x 6, the image is 6 x 9"),
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


@pytest.mark.parametrize("name", ["a.npz", "packed.npz", "a.npy"])
def test_a_few_wrong_bytes_are_refused_or_read_but_never_a_crash(tmp_path, name):
    path, rng = tmp_path / name, np.random.default_rng(0)
    if name == "packed.npz":
        np.savez_compressed(path, SCORE)
    else:
        write(path, SCORE)
    whole = np.fromfile(path, np.uint8)
    for read in (read_map, read_score) if path.suffix == ".npz" else (read_map,):
        for _ in range(100):
            wrong, where = whole.copy(), rng.integers(len(whole), size=3)
            wrong[where] = rng.integers(256, size=3)
            wrong.tofile(path)
            with contextlib.suppress(DataError):
                assert read(path, SCORE.shape).shape == SCORE.shape


@pytest.mark.parametrize("read", [read_map, read_score])
def test_a_packed_map_whose_content_is_damaged_is_refused(tmp_path, read):
    np.savez_compressed(tmp_path / "a.npz", SCORE)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[60:90] = b"\xff" * 30
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "a.npz")


def test_arrays_and_archives_with_the_name_of_the_other_are_refused(tmp_path):
    write(tmp_path / "a.npy", SCORE).rename(tmp_path / "array.npz")
    write(tmp_path / "a.npz", SCORE).rename(tmp_path / "archive.npy")
    for read in (read_map, read_score):
        with pytest.raises(DataError, match=r"array.npz: .*no .npz archive"):
            read(tmp_path / "array.npz")
    with pytest.raises(DataError, match=r"archive.npy: .*no .npy"):
        read_map(tmp_path / "archive.npy")


def test_an_hdf5_that_claims_more_than_it_holds_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as stored:
        stored.create_dataset("value", shape=(1 << 20, 1 << 20), dtype=np.float16, chunks=(64, 64))
    with pytest.raises(DataError, match=r"a.hdf5: .*claims \(1048576, 1048576\)"):
        read_map(tmp_path / "a.hdf5")
    path = write(tmp_path / "zeros.hdf5", np.zeros((2000, 3000), np.float16))
    assert read_map(path, (2000, 3000)).max() == 0


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


def float64_tiff(path, *channels, order="<"):
    """Write a TIFF of 64-bit floats by hand: header, one directory, one strip."""
    height, width = channels[0].shape
    pixels = np.stack(channels, axis=-1).astype(f"{order}f8").tobytes()
    count = len(channels)
    start = 8 + 2 + 12 * 11 + 4
    bits, kinds = start, start + 2 * max(count, 2)
    data = kinds + 2 * max(count, 2)

    def short(values, place):
        return (3, count, place) if count > 2 else (3, count, values)

    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, *short(64, bits)), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, data), (277, 3, 1, count), (278, 4, 1, height), (279, 4, 1, len(pixels)),
        (284, 3, 1, 1), (339, *short(3, kinds)),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, number, value in entries:
        inline = (
            struct.pack(f"{order}HH", value, 0)
            if kind == 3 and number == 1
            else struct.pack(f"{order}I", value)
        )
        directory += struct.pack(f"{order}HHI", tag, kind, number) + inline
    directory += struct.pack(f"{order}I", 0)
    pad = max(count, 2)
    shorts = struct.pack(f"{order}{2 * pad}H", *([64] * pad), *([3] * pad))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(magic + struct.pack(f"{order}I", 8) + directory + shorts + pixels)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_float64_is_read(tmp_path, order):
    exact = np.random.default_rng(1).normal(-8, 3, (6, 9))
    read = read_map(float64_tiff(tmp_path / "a.tif", exact, order=order), (6, 9))
    np.testing.assert_array_equal(read, exact.astype(np.float32))
    assert read.dtype == np.float32


def test_float64_tiffs_that_are_no_map_say_why(tmp_path):
    path = float64_tiff(tmp_path / "colour.tif", SCORE, SCORE, SCORE)
    with pytest.raises(DataError, match="3 channels, score maps have one channel"):
        read_map(path)
    path = float64_tiff(tmp_path / "cut.tif", np.tile(SCORE, (40, 40)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"(?s)cut\.tif: is damaged, or a TIFF.*export it again, as float32"):
        read_map(path)


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
