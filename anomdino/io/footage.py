"""Frames in the order of time, wherever they lie: in a video, or as photos of a folder."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomdino.errors import ConfigError, DataError
from anomdino.io.images import MAX_PIXELS, read_image
from anomdino.io.video import ALL, Frame, Selection, VideoInfo, read_frames, video_info
from anomdino.words import counted

log = logging.getLogger(__name__)

Passed = Callable[[npt.NDArray[np.uint8]], object]


class Footage(Protocol):
    """Frames one behind the other."""

    @property
    def path(self) -> Path:
        """What messages and summaries call it: a file, or a folder."""

    @property
    def name(self) -> str:
        """What stands in pictures."""

    def info(self, max_pixels: int = MAX_PIXELS) -> VideoInfo:
        """Give size, rate and number of its frames.

        Raises:
            DataError: No frame of it can be read, or the first is larger than ``max_pixels``.
        """

    def frames(
        self,
        selection: Selection = ALL,
        max_pixels: int = MAX_PIXELS,
        passed: Passed | None = None,
        strict: bool = False,
    ) -> Iterator[Frame]:
        """Give the selected frames; those that are damaged are left out, with a warning.

        Args:
            selection: Which frames.
            max_pixels: Larger frames are refused.
            passed: Is called with the image of each frame between those that are given, before the next one is.
            strict: A photo that cannot be read ends it. Damaged parts of a video, which are no frames yet, do not.

        Raises:
            DataError: It breaks off, or changes its size; the frames before have been given.
        """


@dataclass(frozen=True)
class VideoFile:
    """A video.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def info(self, max_pixels: int = MAX_PIXELS) -> VideoInfo:
        """See :func:`~anomdino.io.video.video_info`."""
        return video_info(self.path, max_pixels)

    def frames(
        self,
        selection: Selection = ALL,
        max_pixels: int = MAX_PIXELS,
        passed: Passed | None = None,
        strict: bool = False,
    ) -> Iterator[Frame]:
        """See :func:`~anomdino.io.video.read_frames`."""
        return read_frames(self.path, selection, max_pixels, passed)


@dataclass(frozen=True)
class PhotoSequence:
    """Photos of a folder as frames of a drive.

    Attributes:
        path: The folder.
        photos: In the order of time.
        rate: Frames a second.

    Raises:
        ConfigError: ``rate`` is not above 0.
    """

    path: Path
    photos: tuple[Path, ...]
    rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ConfigError("sequence", f"is {self.rate}", "give frames a second, above 0")

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def info(self, max_pixels: int = MAX_PIXELS) -> VideoInfo:
        """Give the size of the first photo that can be read.

        Raises:
            DataError: None can.
        """
        for _, image in self._images(range(len(self.photos)), max_pixels, []):
            return VideoInfo(image.shape[0], image.shape[1], self.rate, len(self.photos))
        raise DataError(
            self.path, "has no photo that can be read", "check the photos, or the limit of pixels"
        )

    def frames(
        self,
        selection: Selection = ALL,
        max_pixels: int = MAX_PIXELS,
        passed: Passed | None = None,
        strict: bool = False,
    ) -> Iterator[Frame]:
        """Read photo by photo; one that cannot be read is left out, with a warning, unless ``strict``.

        Raises:
            DataError: A photo has another size than the first, or, with ``strict``, cannot be read; those before have
                been given.
        """
        chosen = [index for index in range(len(self.photos)) if selection.holds(index / self.rate)]
        if passed is None:
            chosen = chosen[:: selection.every]
        size: tuple[int, ...] | None = None
        unread: list[DataError] = []
        try:
            for index, image in self._images(chosen, max_pixels, unread, strict):
                size = size or image.shape
                if image.shape != size:
                    cause = f"is of {image.shape[1]} x {image.shape[0]}, and those before of {size[1]} x {size[0]}"
                    raise DataError(
                        self.photos[index], cause, "frames of a drive have one size: move it elsewhere"
                    )
                if (index - chosen[0]) % selection.every == 0:
                    yield Frame(index, index / self.rate, image, self.photos[index].name)
                elif passed is not None:
                    passed(image)
        finally:
            if unread:
                first = f"{unread[0].what} {unread[0].cause}"
                log.warning("%s: %s left out, the first: %s", self.path, counted(len(unread), "photo"), first)

    def _images(
        self, indices: Iterable[int], max_pixels: int, unread: list[DataError], strict: bool = False
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        for index in indices:
            try:
                image = read_image(self.photos[index], max_pixels)
            except DataError as error:
                if strict:
                    raise
                unread.append(error)
                continue
            yield index, image


def in_order(photos: Iterable[Path]) -> tuple[Path, ...]:
    """Sort photos as people count: ``frame2.png`` before ``frame10.png``."""
    return tuple(sorted(photos, key=lambda photo: (_counted_name(photo.name), photo.name)))


def _counted_name(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
