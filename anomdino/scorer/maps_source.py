"""Score maps of other methods on disk, in place of a scorer's."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.listing import list_files
from anomdino.io.scores import KEY, check_score

SUFFIXES = (".npz", ".npy", ".tif", ".tiff", ".hdf5", ".h5")
HDF5_DATASET = "value"
LISTED = 10


class MapsSource:
    """A folder of score maps, one for every image.

    Files are named by the key of their image: npz with ``arr_0`` (S2M), npy, single-channel float TIFF, or
    hdf5 with ``value`` (SegmentMeIfYouCan). Higher means more anomalous; the values are taken as they are.

    Args:
        root: The folder; its tree mirrors the images'.
        keys: Keys of the images that are scored.

    Raises:
        DataError: The folder is missing, or maps and images are not one to one; both sides are listed.
    """

    def __init__(self, root: Path | str, keys: Iterable[str]) -> None:
        self.root = Path(root)
        self.files = list_files(self.root, SUFFIXES)
        wanted = set(keys)
        lacking, spare = sorted(wanted - self.files.keys()), sorted(self.files.keys() - wanted)
        if lacking or spare:
            parts = [
                f"{len(names)} {what}: {', '.join(names[:LISTED])}{' ...' if len(names) > LISTED else ''}"
                for names, what in ((lacking, "images without a map"), (spare, "maps without an image"))
                if names
            ]
            raise DataError(
                self.root,
                "; ".join(parts),
                "name every map like its image (the path below the folder, without suffix)",
            )

    def read(self, key: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
        """Read the map of an image.

        Args:
            key: Key of the image.
            size: (H, W) of the image, which the map must have.

        Returns:
            float32 (H, W), finite.

        Raises:
            DataError: The map is damaged, no number, of another size, or holds NaN or infinity.
        """
        return read_map(self.files[key], size)


def read_map(path: Path | str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
    """Read one score map in any of the formats of :class:`MapsSource`.

    Axes of length 1 are dropped, as in the (1, H, W) that some methods save.

    Args:
        path: The file; its suffix tells the format.
        size: (H, W) that the map must have.

    Returns:
        float32 (H, W), finite.

    Raises:
        DataError: See :meth:`MapsSource.read`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "does not exist", "check the folder of score maps")
    try:
        values = _READERS[path.suffix.lower()](path)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
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
    with np.load(path, allow_pickle=False) as stored:
        if KEY not in stored:
            found = ", ".join(stored) or "nothing"
            raise DataError(path, f"has no array '{KEY}' but {found}", "save it with np.savez(path, score)")
        array: npt.NDArray[np.generic] = stored[KEY]
        return array


def _read_npy(path: Path) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = np.load(path, allow_pickle=False)
    return array


def _read_tiff(path: Path) -> npt.NDArray[np.generic]:
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in {"F", "I", "I;16", "I;16B", "L"}:
            raise DataError(
                path, f"is a {image.mode} image, score maps have one channel", "export float TIFF"
            )
        return np.array(image)


def _read_hdf5(path: Path) -> npt.NDArray[np.generic]:
    import h5py

    with h5py.File(path, "r") as stored:
        dataset = stored.get(HDF5_DATASET)
        if not isinstance(dataset, h5py.Dataset):
            raise DataError(
                path,
                f"has no dataset '{HDF5_DATASET}' but {', '.join(stored) or 'nothing'}",
                "save it as SegmentMeIfYouCan's tools do",
            )
        return np.asarray(dataset[()])


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".hdf5": _read_hdf5,
    ".h5": _read_hdf5,
}
