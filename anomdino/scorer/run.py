"""Scoring a whole set: read, score and write at the same time, and go on where a killed run stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.errors import AnomdinoError, DataError
from anomdino.io.atomic import atomic_write_json
from anomdino.io.digest import file_sha256
from anomdino.io.images import MAX_PIXELS, read_image
from anomdino.io.scores import write_score
from anomdino.progress import track
from anomdino.scorer.inference import ScoringEngine
from anomdino.scorer.maps_source import MapsSource
from anomdino.scorer.options import ScoringOptions
from anomdino.scorer.scored import PendingScores, Scored

log = logging.getLogger(__name__)

DONE_FOLDER = ".done"
SPEED_ONLY = {"batch", "compile", "compile_mode"}
COUNTED_APART = {"fusion"}
"""A learned fusion counts by its file."""
COUNTED_IF_SET = {"refine"}
"""Results from before the option existed stay valid."""
SKIPPED_FILE = "skipped.json"


@dataclass(frozen=True)
class Outputs:
    """Where results go: ``<scores>/<key>.npz`` and ``<maps>/<key>.npz``."""

    scores: Path
    maps: Path

    def of(self, key: str) -> tuple[Path, Path, Path]:
        """Give the files of an image: score, maps, and the note that both are finished."""
        return self.scores / f"{key}.npz", self.maps / f"{key}.npz", self.maps / DONE_FOLDER / f"{key}.json"


@dataclass(frozen=True)
class RunOptions:
    """How a set is worked through; nothing here changes a result.

    Attributes:
        workers: Threads that read, and as many that write.
        max_image_pixels: Images with more pixels are refused before they are decoded.
        skip_bad: List unreadable images in ``skipped.json`` instead of stopping.
        max_bad: More bad images than this stop the run all the same; ``None``: any number may be skipped.
    """

    workers: int = 4
    max_image_pixels: int = MAX_PIXELS
    skip_bad: bool = False
    max_bad: int | None = 0


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        scored: Images scored now.
        reused: Images whose results were there and valid.
        skipped: Unreadable images, key to reason.
    """

    scored: int = 0
    reused: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Loaded:
    key: str
    path: Path
    image: npt.NDArray[np.uint8]
    content: str


def content_digest(options: ScoringOptions, weights: Path | str | None, *extra: str) -> str:
    """Digest everything but the image that a result depends on.

    Args:
        options: How images are scored; ``batch`` and ``compile`` do not count.
        weights: The scorer's weight file.
        extra: Further texts, such as the network's name.
    """
    settings = {
        name: value
        for name, value in asdict(options).items()
        if name not in SPEED_ONLY | COUNTED_APART and (value or name not in COUNTED_IF_SET)
    }
    digest = hashlib.sha256(json.dumps([settings, *extra], sort_keys=True).encode())
    if weights is not None:
        with Path(weights).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SetScorer:
    """Scores whole sets, streaming; finished images of an earlier run are kept.

    An image is finished when its note carries the same digest, the same content of the image (and of the map
    that takes the score's place), and its two files are those that were written.

    Attributes:
        engine: The scorer.
        outputs: Where results go.
        digest: What the results depend on besides the image (see :func:`content_digest`).
        options: How the set is worked through.
        source: Score maps that take the place of the scorer's.
        what: Name for the progress bar.
    """

    engine: ScoringEngine
    outputs: Outputs
    digest: str
    options: RunOptions = field(default_factory=RunOptions)
    source: MapsSource | None = None
    what: str = "score"

    def run(self, images: Mapping[str, Path]) -> RunReport:
        """Score images and write their maps; results of images that are not among them are removed.

        Args:
            images: Image files by key.

        Raises:
            DataError: An image cannot be read (unless skipped), a score is not finite, or a map does not fit.
        """
        self.remove_strangers(images)
        report = self.score(images)
        if report.skipped:
            atomic_write_json(self.outputs.maps / SKIPPED_FILE, report.skipped)
        return report

    def score(self, images: Mapping[str, Path]) -> RunReport:
        """Score images and write their maps beside those of others, the share of one of several processes, say.

        Args:
            images: Image files by key; no other process may score one of them.

        Raises:
            DataError: As :meth:`run`.
        """
        report = RunReport()
        threads = self.options.workers
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
            try:
                self._run(images, report, readers, writers)
            except BaseException:
                readers.shutdown(cancel_futures=True)
                writers.shutdown(cancel_futures=True)
                raise
        return report

    def _run(
        self,
        images: Mapping[str, Path],
        report: RunReport,
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
    ) -> None:
        writes: deque[Future[None]] = deque()
        for group, pending in self._launched(images, report, readers):
            for item, scored in zip(group, pending.results(), strict=True):
                writes.append(writers.submit(self._finish, item, scored))
            report.scored += len(group)
            while len(writes) > 2 * self.options.workers:
                writes.popleft().result()
        for write in writes:
            write.result()

    def _launched(
        self, images: Mapping[str, Path], report: RunReport, readers: ThreadPoolExecutor
    ) -> Iterator[tuple[list[_Loaded], PendingScores]]:
        """Launch batches one ahead of the one that is collected, so that the device never waits."""
        ahead: tuple[list[_Loaded], PendingScores] | None = None
        for group in _groups(self._loaded(images, report, readers), self.engine.options.batch):
            pending = self.engine.launch([item.image for item in group], [item.path for item in group])
            if ahead is not None:
                yield ahead
            ahead = group, pending
        if ahead is not None:
            yield ahead

    def _loaded(
        self, images: Mapping[str, Path], report: RunReport, readers: ThreadPoolExecutor
    ) -> Iterator[_Loaded]:
        waiting: deque[tuple[str, Future[_Loaded | None]]] = deque()
        remaining = iter(images.items())
        for _ in track(range(len(images)), self.what, total=len(images)):
            for key, path in itertools.islice(remaining, 2 * self.options.workers - len(waiting)):
                waiting.append((key, readers.submit(self._load, key, path)))
            key, future = waiting.popleft()
            try:
                loaded = future.result()
            except AnomdinoError as error:
                self._skip_or_raise(key, error, report)
                continue
            if loaded is None:
                report.reused += 1
            else:
                yield loaded

    def _load(self, key: str, path: Path) -> _Loaded | None:
        files = [path] if self.source is None else [path, self.source.files[key]]
        try:
            content = "-".join([self.digest, *map(file_sha256, files)])
        except OSError:
            content = ""  # what is wrong with the file, its reader says
        if content and self._is_finished(key, content):
            return None
        image = read_image(path, self.options.max_image_pixels)
        self.engine.check_size(image.shape, path)
        return _Loaded(key, path, image, content)

    def _skip_or_raise(self, key: str, error: AnomdinoError, report: RunReport) -> None:
        if not self.options.skip_bad:
            raise error
        report.skipped[key] = str(error)
        for file in self.outputs.of(key):
            file.unlink(missing_ok=True)
        log.warning("skipped: %s", error)
        most = self.options.max_bad
        if most is not None and len(report.skipped) > most:
            raise DataError(
                "score.max_bad",
                f"{len(report.skipped)} unreadable images, {most} are allowed; the last: {error}",
                "repair or remove them, or raise score.max_bad",
            ) from error

    def _finish(self, item: _Loaded, scored: Scored) -> None:
        if self.source is not None:
            score = self.source.read(item.key, scored.maps.image_size)
            scored = scored.with_score(score, self.engine.options.map_stride)
        score_file, maps_file, note = self.outputs.of(item.key)
        note.unlink(missing_ok=True)
        write_score(score_file, scored.score)
        scored.maps.save(maps_file)
        files = {"score": file_sha256(score_file), "maps": file_sha256(maps_file)}
        atomic_write_json(note, {"content": item.content, **files}, indent=None)

    def _is_finished(self, key: str, content: str) -> bool:
        score_file, maps_file, note = self.outputs.of(key)
        if not (note.is_file() and score_file.is_file() and maps_file.is_file()):
            return False
        try:
            stored = json.loads(note.read_text(encoding="utf-8"))
        except ValueError:
            return False
        if not isinstance(stored, dict) or stored.get("content") != content:
            return False
        intact = stored.get("score") == file_sha256(score_file) and stored.get("maps") == file_sha256(
            maps_file
        )
        if not intact:
            log.warning("%s: a stored result was changed or damaged, it is computed again", key)
        return intact

    def remove_strangers(self, images: Mapping[str, Path]) -> None:
        """Remove the results of images that are not among these."""
        notes = self.outputs.maps / DONE_FOLDER
        for folder, suffix in ((self.outputs.scores, ".npz"), (self.outputs.maps, ".npz"), (notes, ".json")):
            for file in sorted(folder.rglob(f"*{suffix}")):
                if file.relative_to(folder).with_suffix("").as_posix() not in images:
                    file.unlink()
        (self.outputs.maps / SKIPPED_FILE).unlink(missing_ok=True)


def _groups(loaded: Iterator[_Loaded], batch: int) -> Iterator[list[_Loaded]]:
    group: list[_Loaded] = []
    for item in loaded:
        if group and (len(group) == batch or group[0].image.shape != item.image.shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
