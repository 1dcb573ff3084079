"""Score maps of any method on disk: npz, npy, float TIFF and SegmentMeIfYouCan's hdf5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.listing import list_files
from anomdino.io.npz import DAMAGED, open_npz
from anomdino.io.scores import KEY, check_score

MAP_SUFFIXES = (".npz", ".npy", ".tif", ".tiff", ".hdf5", ".h5")
HDF5_DATASET = "value"
_MOST_PACKED = 2000  # deflate makes zeros 1032 times as small
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF in both byte orders."""


def list_maps(folder: Path | str) -> dict[str, Path]:
    """List the score maps of a folder by key: the path below the folder, without suffix.

    Raises:
        DataError: The folder is missing or holds none, or two files have one key.
    """
    found = list_files(folder, MAP_SUFFIXES)
    if not found:
        raise DataError(folder, "holds no score map", f"maps are named <key>{' or <key>'.join(MAP_SUFFIXES)}")
    return found


def read_map(path: Path | str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
    """Read one score map: npz with ``arr_0`` (S2M), npy, single-channel TIFF, or hdf5 with ``value`` (SMIYC).

    Axes of length 1 are dropped, as in the (1, H, W) that some methods save. The values are taken as they are.

    Args:
        path: The file; its suffix tells the format.
        size: (H, W) that the map must have.

    Returns:
        float32 (H, W), finite.

    Raises:
        DataError: The map is missing, damaged, no number, of 8 bits, of another size, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "does not exist", "check the folder of score maps")
    try:
        values = _READERS[path.suffix.lower()](path)
    except DAMAGED as error:
        raise DataError(path, f"is no score map or is damaged ({error})", "export it again") from error
    if values.dtype.kind not in "fiu":
        raise DataError(path, f"holds {values.dtype}, score maps hold numbers", "export real numbers")
    if values.dtype == np.uint8:
        raise DataError(
            path,
            "holds 8-bit values: 256 levels tie most pixels, which ruins AP and FPR95",
            "export the float scores themselves",
        )
    score = np.squeeze(values).astype(np.float32) if values.ndim > 2 else values.astype(np.float32)
    check_score(path, score, size)
    return score


def _read_npz(path: Path) -> npt.NDArray[np.generic]:
    with open_npz(path) as stored:
        if KEY not in stored:
            found = ", ".join(stored) or "nothing"
            raise DataError(path, f"has no array '{KEY}' but {found}", "save it with np.savez(path, score)")
        array: npt.NDArray[np.generic] = stored[KEY]
        return array


def _read_npy(path: Path) -> npt.NDArray[np.generic]:
    array: object = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("an .npz archive, and no .npy")
    return array


def _read_tiff(path: Path) -> npt.NDArray[np.generic]:
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(path)
    except UnidentifiedImageError as error:
        return _read_other_tiff(path, error)
    except Image.DecompressionBombError as error:
        raise DataError(path, f"is too large ({error})", "write one map for each image") from error
    with opened as image:
        if image.mode not in {"F", "I", "I;16", "I;16B", "L"}:
            raise DataError(
                path, f"is a {image.mode} image, score maps have one channel", "export float TIFF"
            )
        return np.array(image)


def _read_other_tiff(path: Path, unknown: Exception) -> npt.NDArray[np.generic]:
    """Read a TIFF of numbers that Pillow does not know, such as float64, by OpenCV."""
    import cv2

    content = np.fromfile(path, np.uint8)
    if content[:4].tobytes() not in TIFF_MAGIC:
        raise unknown
    try:
        array: npt.NDArray[np.generic] | None = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DataError(path, f"is too large or damaged ({error})", "write one map for each image") from error
    if array is None:
        cure = "export it again, as float32 TIFF, npz or npy"
        raise DataError(path, "is damaged, or a TIFF of a kind that neither Pillow nor OpenCV reads", cure)
    if array.ndim != 2:
        cause = f"is an image of {array.shape[2]} channels, score maps have one channel"
        raise DataError(path, cause, "export float TIFF")
    return array


def _read_hdf5(path: Path) -> npt.NDArray[np.generic]:
    import h5py

    with h5py.File(path, "r") as stored:
        dataset = stored.get(HDF5_DATASET)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(
                path,
                f"has no dataset '{HDF5_DATASET}' but {', '.join(map(str, stored)) or 'nothing'}",
                "save it as SegmentMeIfYouCan's tools do",
            )
        most = _MOST_PACKED * path.stat().st_size  # h5py would fill in, in memory, what is missing
        if dataset.nbytes > most:
            raise ValueError(f"it claims {dataset.shape} values")
        return np.asarray(dataset[()])


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
}
