"""Reading a camera or a network stream: always the newest frame, however long the work on the one before took."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from anomdino.errors import AnomdinoError, DataError
from anomdino.io.images import MAX_PIXELS
from anomdino.io.video import decodable, require_pyav, upright

log = logging.getLogger(__name__)

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "rtp")
FORMATS = "rtsp,rtp,sdp,mpjpeg,mjpeg,hls,mpegts,flv,mov,matroska,webm,h264,hevc"
"""What FFmpeg may take a stream for."""
PROTOCOLS = "http,https,httpproxy,tcp,tls,udp,rtp,rtmp,rtmps,crypto"
"""What a stream may refer to: no file of this machine, whatever a play list from outside names."""
SILENCE = 10.0
"""Seconds without data after which a source counts as lost."""
CLOSING = 2.0
"""Seconds that closing takes at most."""
PASSED_STEP, MOST_PASSED = timedelta(seconds=0.1), 100
"""Between frames of which something is kept, and of how many at most."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a lost source is opened again: the first wait, doubled each time, and the longest."""


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A frame of a live source.

    Attributes:
        index: Its number since the source was opened, the first is 0; where numbers are missing, frames were passed over.
        arrived: When it was decoded, UTC.
        image: uint8 (H, W, 3), RGB, upright.
        passed: What was kept of the frames between the one given before and this one, in their order.
    """

    index: int
    arrived: datetime
    image: npt.NDArray[np.uint8]
    passed: tuple[Any, ...] = ()


class LiveSource:
    """A camera or network stream, read by a thread that keeps the newest frame alone; a lost one is opened again.

    Used as a context: entering it opens the source.

    Args:
        address: ``rtsp://``, ``http://`` and so on (:data:`SCHEMES`), or the device of a camera, ``/dev/video0``.
        patience: Seconds for which a lost source is tried again; then it is given up.
        max_pixels: Sources with larger frames are refused.
        silence: Seconds without data after which the source counts as lost.
        passed: Makes what is kept of a frame that is passed over, from its image; ten a second at most, and a hundred in
            all: where there would be more, every second one goes. ``None`` keeps nothing.

    Raises:
        DataError: ``address`` is neither, or, when it is entered, cannot be opened.
        BackendMissing: PyAV is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        patience: float = 300.0,
        max_pixels: int = MAX_PIXELS,
        silence: float = SILENCE,
        passed: Callable[[npt.NDArray[np.uint8]], Any] | None = None,
    ) -> None:
        self.name = without_password(address)
        if not is_live(address):
            raise DataError(
                self.name,
                "is no address of a stream and no device of a camera",
                f"name one as rtsp://HOST/PATH (or {', '.join(SCHEMES[2:])}), or /dev/video0; "
                "for files use `anomdino predict`",
            )
        require_pyav()
        self._address, self._patience, self._max_pixels, self._silence = (
            address,
            patience,
            max_pixels,
            silence,
        )
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._newest: tuple[int, datetime, Any] | None = None
        self._ended: Exception | None = None
        self._frames, self._taken = 0, -1
        self._passed, self._step = passed, PASSED_STEP
        self._between: list[tuple[int, datetime, Any]] = []
        self._thread = threading.Thread(target=self._run, name=f"reader of {self.name}", daemon=True)

    def __enter__(self) -> LiveSource:
        """Open the source and wait for its first frame.

        Raises:
            DataError: There is none.
        """
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._ended)
        if self._newest is None and self._ended is not None:
            raise self._ended
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(min(self._silence, CLOSING))  # one that waits for data ends with the program

    @property
    def frames(self) -> int:
        """Number of frames that came, those that were passed over among them."""
        return self._frames

    def take(self, timeout: float | None = None) -> LiveFrame | None:
        """Give the newest frame that was not given before, and wait for one if there is none.

        Args:
            timeout: Seconds to wait at most; ``None`` waits until there is one.

        Returns:
            The frame, or ``None`` when the time is over.

        Raises:
            DataError: The source is lost and was given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._fresh(), timeout)
            newest = self._fresh()
            if newest is None and self._ended is not None:
                raise self._ended
        if newest is None:
            return None
        index, arrived, raw = newest
        return LiveFrame(index, arrived, upright(raw), self._take_between(index))

    def _take_between(self, index: int) -> tuple[Any, ...]:
        """Give what was kept of the frames before one that is given now, and begin anew."""
        with self._changed:
            kept = tuple(made for number, _, made in self._between if self._taken < number < index)
            self._between = [one for one in self._between if one[0] > index]
            self._taken, self._step = index, PASSED_STEP
        return kept

    def _pass_over(self, index: int, arrived: datetime, raw: Any) -> None:
        """Keep something of a frame that another takes the place of, unless one was kept a moment before."""
        if self._passed is None or index <= self._taken:
            return
        if self._between and arrived - self._between[-1][1] < self._step:
            return
        made = self._passed(upright(raw))
        with self._changed:
            self._between.append((index, arrived, made))
            if len(self._between) > MOST_PASSED:
                self._between, self._step = self._between[::2], 2 * self._step

    def _fresh(self) -> tuple[int, datetime, Any] | None:
        return self._newest if self._newest is not None and self._newest[0] > self._taken else None

    def _run(self) -> None:
        """Do the thread's work; whatever ends it, who waits for frames is told."""
        try:
            ended: Exception | None = self._until_lost()
        except Exception as error:
            ended = error
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def _until_lost(self) -> AnomdinoError | None:
        """Follow the source, and open it again when it is lost; give the error for which it is given up."""
        pause, lost_since = FIRST_PAUSE, time.monotonic()
        while not self._closing.is_set():
            before = self._frames
            try:
                self._follow()
                error: AnomdinoError = DataError(self.name, "sends no more frames", "")
            except AnomdinoError as broken:
                error = broken
            now = time.monotonic()
            if self._frames > before:
                pause, lost_since = FIRST_PAUSE, now
            if not self._frames or now - lost_since >= self._patience:
                return error
            if not self._closing.is_set():
                log.warning("%s: %s; opened again in %g s", error.what, error.cause, pause)
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return None

    def _follow(self) -> None:
        """Keep the newest frame until the source ends, breaks or is closed."""
        with self._opened() as (container, stream):
            for raw in decodable(self.name, container, stream):
                if self._closing.is_set():
                    return
                if self._newest is not None:
                    self._pass_over(*self._newest)
                with self._changed:
                    self._newest = (self._frames, datetime.now(UTC), raw)
                    self._frames += 1
                    self._changed.notify_all()

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = require_pyav()
        limit = {"max_pixels": str(self._max_pixels)}
        camera = Path(self._address).is_char_device()
        options = {"format_whitelist": FORMATS, "protocol_whitelist": PROTOCOLS, "rtsp_transport": "tcp"}
        try:
            container = av.open(
                self._address,
                format="v4l2" if camera else None,
                options={} if camera else options,
                timeout=self._silence,
            )
        except (av.FFmpegError, OSError) as error:
            cause = f"cannot be opened ({error.strerror or type(error).__name__})"
            cure = "check the device, and that no other program uses it" if camera else "check the address"
            raise DataError(self.name, cause, cure) from error
        with container:
            if not container.streams.video:
                raise DataError(self.name, "holds no pictures", "name a camera's own stream")
            if self._address.lower().startswith("http") and container.duration:
                raise DataError(
                    self.name,
                    f"is a recording of {container.duration / av.time_base:.1f} s",
                    "get the file, and use `anomdino predict`",
                )
            stream = container.streams.video[0]
            height, width = stream.codec_context.height, stream.codec_context.width
            if height * width > self._max_pixels:
                cause = f"has frames of {width} x {height}, more than {self._max_pixels} pixels"
                raise DataError(self.name, cause, "ask for a smaller stream, or raise the limit")
            stream.codec_context.options = limit
            stream.thread_type = "SLICE"  # threads that share out frames would hold some back
            yield container, stream


def is_live(address: str) -> bool:
    """Whether a text is the address of a stream, or the device of a camera."""
    scheme, separator, _ = address.partition("://")
    return (bool(separator) and scheme.lower() in SCHEMES) or Path(address).is_char_device()


def without_password(address: str) -> str:
    """Give an address as it may be shown: stars for user and password, and for the query, where keys of cameras stand."""
    shown, query, _ = address.partition("?")
    return re.sub(r"^(\w+://).*@", r"\1***@", shown) + ("?***" if query else "")
