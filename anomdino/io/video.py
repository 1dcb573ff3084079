"""Reading a video frame by frame and writing one, with a memory that does not grow with its length."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.errors import BackendMissing, ConfigError, DataError
from anomdino.io.atomic import atomic_path
from anomdino.io.images import MAX_PIXELS, known_content
from anomdino.words import counted

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"}
)
FORMATS = "mov,avi,matroska,webm,mpeg,mpegts,mpegvideo,asf"
"""What FFmpeg may take a file for: none of these opens other files or addresses, as play lists do."""
USUAL_RATE = 25.0
"""Frames a second of a video that does not say."""
MOST_DAMAGED = 100
"""Damaged parts one behind the other after which a video is given up."""
MISSING_SECONDS = 1.0
"""A video that ends so much before its header says has lost its end; less is the header's rounding, or sound."""
LONGEST = 3600.0
"""Seconds for which a written frame is shown at most."""
LATEST = 1e9
"""Seconds beyond which no video goes on."""
CLOCK = 90_000
"""Ticks of a second in written videos; all usual frame rates are whole numbers of them."""
QUALITY = {"crf": "20", "preset": "veryfast"}
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour matrix and range that players take for granted


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself.

    Attributes:
        height: Rows of an upright frame.
        width: Columns of an upright frame.
        rate: Frames a second in the mean, above 0.
        frames: Number of frames by the length that its header says, 0 where that is silent.
    """

    height: int
    width: int
    rate: float
    frames: int


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame.

    Attributes:
        index: Its number, the first is 0.
        time: Seconds since the first.
        image: uint8 (H, W, 3), RGB, upright.
        name: Of the file that is the frame, if there is one.
    """

    index: int
    time: float
    image: npt.NDArray[np.uint8]
    name: str = ""


@dataclass(frozen=True)
class Selection:
    """Which frames of a video are asked for: each ``every``-th of those whose time lies in ``[start, end)``.

    Attributes:
        every: 1 takes all, 2 the first, the third and so on.
        start: Seconds since the video's first frame.
        end: Seconds since the video's first frame; ``None`` is its end.

    Raises:
        ConfigError: ``every`` is below 1, ``start`` below 0, or ``end`` not after ``start``.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError("every", f"is {self.every}", "1 takes all frames, 2 every second one")
        if not 0 <= self.start < LATEST:
            raise ConfigError("start", f"is {self.start}", "give seconds from the beginning, 0 or more")
        if self.end is not None and not self.start < self.end < LATEST:
            cause = f"is {self.end}, not after the start, {self.start}, or no time"
            raise ConfigError("end", cause, "leave it out for the whole video")

    def holds(self, time: float) -> bool:
        """Whether a time, seconds since the first frame, lies in the stretch that is asked for."""
        return self.start <= time and (self.end is None or time < self.end)

    def count(self, info: VideoInfo) -> int | None:
        """Give how many frames of a video are asked for, by its header; ``None`` where that does not say."""
        if not info.frames:
            return None
        last = info.frames if self.end is None else min(info.frames, math.ceil(self.end * info.rate))
        return max(0, -(-(last - math.ceil(self.start * info.rate)) // self.every))


ALL = Selection()


def video_info(path: Path | str, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Look at a video: its first frame is decoded.

    Args:
        path: A file in any container and codec that FFmpeg reads.
        max_pixels: Videos with larger frames are refused before one is decoded.

    Raises:
        DataError: The file is missing, empty, damaged, no video, or its frames are larger than ``max_pixels``.
        BackendMissing: PyAV is not installed.
    """
    path = Path(path)
    _check_header(path, max_pixels)
    with _opened(path, max_pixels) as (container, stream):
        _, first = next(_decoded(path, container, stream), (0.0, None))
        if first is None:
            raise DataError(path, "has no frame that can be decoded", "copy or record it again")
        height, width = first.height, first.width
        if _quarter_turns(first) % 2:
            height, width = width, height
        rate = _rate(stream)
        return VideoInfo(
            height, width, rate, round(_length(container, stream, float(first.time or 0)) * rate)
        )


def read_frames(
    path: Path | str,
    selection: Selection = ALL,
    max_pixels: int = MAX_PIXELS,
    passed: Callable[[npt.NDArray[np.uint8]], object] | None = None,
) -> Iterator[Frame]:
    """Decode a video frame by frame; damaged frames are left out, with a warning.

    Args:
        path: The video.
        selection: Which frames are given.
        max_pixels: Videos with larger frames are refused before one is decoded.
        passed: Is called with the image of each frame between those that are given, before the next one is.

    Raises:
        DataError: The file cannot be opened, or the stream breaks, or its frames change their size; the frames before
            have been given.
        BackendMissing: PyAV is not installed.
    """
    path = Path(path)
    _check_header(path, max_pixels)
    with _opened(path, max_pixels) as (container, stream):
        size: tuple[int, int] | None = None
        begun: int | None = None
        for index, (time, raw) in enumerate(_decoded(path, container, stream)):
            size = size or (raw.height, raw.width)
            if (raw.height, raw.width) != size:
                raise DataError(path, f"changes its size after {counted(index, 'frame')}", "cut it there")
            if selection.end is not None and time >= selection.end:
                return
            if time < selection.start:
                continue
            begun = index if begun is None else begun
            if (index - begun) % selection.every == 0:
                yield Frame(index, time, upright(raw))
            elif passed is not None:
                passed(upright(raw))


def _check_header(path: Path, max_pixels: int) -> None:
    """Refuse a video by what its header says: decoders that are told of the limit forget the size that is above it.

    Raises:
        DataError: It may not be read, there is no decoder for it, or its frames are larger than ``max_pixels``.
    """
    av = require_pyav()
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "skip_frame": "all"}
    try:
        container = av.open(f"file:{path}", options=options)
    except PermissionError as error:
        cure = "make the file and its folders readable"
        raise DataError(path, "may not be read: permission denied", cure) from error
    except av.FFmpegError:
        return  # what it is instead is said where it is opened to be read
    with container:
        for stream in container.streams.video[:1]:
            context = stream.codec_context
            if context is None:
                cure = "convert it, to H.264 in an MP4 for instance"
                raise DataError(path, "is coded in a way that PyAV has no decoder for", cure)
            if context.height * context.width > max_pixels:
                cause = f"has frames of {context.width} x {context.height}, more than {max_pixels} pixels"
                raise DataError(path, cause, "shrink it, or raise the limit")


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[tuple[Any, Any]]:
    """Give a video's container and its stream of pictures."""
    av = require_pyav()
    if not path.is_file():
        raise DataError(path, "does not exist", "check the path")
    if path.stat().st_size == 0:
        raise DataError(path, "is empty", "copy it again")
    limit = {"max_pixels": str(max_pixels)}
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", **limit}
    try:
        container = av.open(f"file:{path}", options=options)
    except av.FFmpegError as error:
        known = known_content(path)
        cause = f"is no video but {known}" if known else f"is no video, or damaged ({error.strerror})"
        raise DataError(path, cause, "get the video itself; other programs must play it, too") from error
    with container:
        if not container.streams.video:
            raise DataError(path, "holds no pictures", "name a video")
        stream = container.streams.video[0]
        height, width = stream.codec_context.height, stream.codec_context.width
        if height * width > max_pixels:
            cause = f"has frames of {width} x {height}, more than {max_pixels} pixels"
            raise DataError(path, cause, "shrink it, or raise the limit")
        stream.codec_context.options = limit  # for what the frames themselves say
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Decode frame by frame, each with its seconds since the first.

    Where times fall, as in films that were put one behind the other, they go on from there.

    Raises:
        DataError: The stream breaks; most decoders end there without a word, long before the header says.
    """
    zero: float | None = None
    begin, seconds, last, count, rate = 0.0, 0.0, 0.0, 0, _rate(stream)
    for raw in decodable(path, container, stream):
        own = count / rate if raw.time is None else float(raw.time)
        if zero is None:
            zero = begin = own
        if own - zero < seconds:
            zero = own - seconds - last
        seconds, count = own - zero, count + 1
        last = float(raw.duration * raw.time_base) if raw.duration and raw.time_base else 1 / rate
        yield seconds, raw
    length = _length(container, stream, begin)
    if count and length - seconds - last > MISSING_SECONDS:
        cause = f"breaks off after {counted(count, 'frame')}, at second {seconds + last:.1f} of {length:.1f}"
        raise DataError(path, cause, "copy it again")


def decodable(path: Path | str, container: Any, stream: Any) -> Iterator[Any]:
    """Decode what can be decoded, and say how much could not.

    Args:
        path: What messages call the source.
        container: Of PyAV, opened.
        stream: One of its streams of pictures.

    Yields:
        Frames of PyAV.

    Raises:
        DataError: :data:`MOST_DAMAGED` parts one behind the other cannot be decoded.
    """
    damaged, in_a_row, errors = 0, 0, require_pyav().FFmpegError
    packets = container.demux(stream)
    packet: Any = ()
    while packet is not None:
        try:
            packet = next(packets, None)
            frames, in_a_row = ([] if packet is None else packet.decode()), 0
        except errors as error:
            log.debug("%s: %s", path, error)
            damaged, in_a_row, frames = damaged + 1, in_a_row + 1, []
            if in_a_row > MOST_DAMAGED:
                raise DataError(path, f"cannot be decoded ({error.strerror})", "copy it again") from error
        yield from frames
    if damaged:
        log.warning("%s: %s left out", path, counted(damaged, "damaged part"))


def _rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or USUAL_RATE)


def _length(container: Any, stream: Any, begin: float) -> float:
    """Give the seconds of pictures that the header says, 0 where it does not; ``begin`` is the first frame's time."""
    if stream.duration and stream.time_base:
        length = float(stream.duration * stream.time_base)
    elif len(container.streams) == 1:
        length = float(container.duration or 0) / float(require_pyav().time_base) - begin
    else:
        length = 0.0  # what is known is the length of the longest stream, perhaps of the sound
    if "mp4" in container.format.name:  # a cut MP4 counts frames that it does not show
        return length
    return max(0.0, length, float(stream.frames) / _rate(stream))


def upright(raw: Any) -> npt.NDArray[np.uint8]:
    """Give a frame of PyAV as it is looked at: uint8 (H, W, 3), RGB."""
    return np.ascontiguousarray(np.rot90(raw.to_ndarray(format="rgb24"), _quarter_turns(raw)))


def _quarter_turns(raw: Any) -> int:
    """Give how often a frame must be turned by 90 degrees, against the clock, to be upright."""
    turns: int = round(raw.rotation / 90) % 4
    return turns


class VideoWriter:
    """Writes H.264 in an MP4 that browsers and players open; made by :func:`writing_video`.

    Frames have the size of the first; odd sizes gain a row or column, for the codec has no half colours.
    """

    def __init__(self, container: Any, av: Any, rate: float, path: Path) -> None:
        self._container, self._av, self._path = container, av, path
        self._step = max(1, round(CLOCK * min(1 / rate, LONGEST)))
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1

    def write(self, picture: npt.NDArray[np.uint8], time: float) -> None:
        """Append a picture.

        Args:
            picture: uint8 (H, W, 3), RGB, of the first one's size.
            time: Seconds at which it is shown, later than the one before.

        Raises:
            DataError: It has another size than the first.
        """
        if self._stream is None:
            self._begin(picture.shape[0], picture.shape[1])
        if picture.shape[:2] != self._size:
            raise DataError(self._path, f"got a frame of {picture.shape[:2]} after {self._size}", "")
        even = np.pad(picture, [(0, side % 2) for side in self._size] + [(0, 0)], mode="edge")
        frame = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self._last = max(self._last + 1, round(time * CLOCK))
        frame.pts, frame.time_base, frame.duration = self._last, Fraction(1, CLOCK), self._step
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())

    def _begin(self, height: int, width: int) -> None:
        self._size = (height, width)
        stream = self._container.add_stream("libx264", rate=Fraction(CLOCK, self._step), options=QUALITY)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._stream = stream


@contextmanager
def writing_video(path: Path | str, rate: float) -> Iterator[VideoWriter]:
    """Write a video that appears at ``path`` when the block ends, whole or not at all; without a frame, none appears.

    Args:
        path: The file, ``.mp4``.
        rate: Frames a second, which tells how long the last one is shown.

    Raises:
        BackendMissing: PyAV is not installed.
        DiskError: The disk is full or not writable.
    """
    av, path = require_pyav(), Path(path)
    with atomic_path(path) as temporary:
        try:
            target, options = f"file:{temporary}", {"movflags": "+faststart"}
            with av.open(target, "w", format="mp4", options=options) as container:
                writer = VideoWriter(container, av, rate, path)
                yield writer
                writer.finish()
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # a full disk, say
                raise
            raise DataError(path, f"could not be written ({error.strerror})", "") from error
        finally:
            if temporary.exists() and temporary.stat().st_size == 0:
                temporary.unlink()


def require_pyav() -> Any:
    """Give the module that decodes and encodes.

    Raises:
        BackendMissing: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise BackendMissing(
            "av", "is not installed; videos need it", "pip install 'anomdino[video]'"
        ) from error
    return av
