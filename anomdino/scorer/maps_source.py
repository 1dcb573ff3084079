"""Score maps of other methods on disk, in place of a scorer's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.errors import DataError
from anomdino.io.listing import list_files
from anomdino.io.maps import MAP_SUFFIXES, read_map

LISTED = 10


class MapsSource:
    """A folder of score maps, one for every image.

    Files are named by the key of their image, in any format of :func:`anomdino.io.maps.read_map`. Higher means more
    anomalous; the values are taken as they are.

    Args:
        root: The folder; its tree mirrors the images'.
        keys: Keys of the images that are scored.

    Raises:
        DataError: The folder is missing, or maps and images are not one to one; both sides are listed.
    """

    def __init__(self, root: Path | str, keys: Iterable[str]) -> None:
        self.root = Path(root)
        self.files = list_files(self.root, MAP_SUFFIXES)
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
