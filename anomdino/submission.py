"""Score files for the SegmentMeIfYouCan server, in the benchmark's own layout (road-anomaly-benchmark).

The benchmark stores scores as float16. Energies near -10 would collapse to a handful of values there, so that
scores are first moved by one increasing map for the whole data set. The map is kept beside the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anomdino.benchmarks import Benchmark, Sample
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_path, atomic_write_json
from anomdino.io.images import image_size
from anomdino.io.scores import check_score
from anomdino.metrics.streaming import StreamingPixels

FloatMap = npt.NDArray[np.float32]
ReadScore = Callable[[Sample], FloatMap]

DATASETS = {"smiyc_anomaly_track": "AnomalyTrack-all", "smiyc_obstacle_track": "ObstacleTrack-all"}
MAP_FILE = "rescaling.json"
_LEVELS = int(np.float16(1.0).view(np.uint16))
_TAIL = 1e-5
_TAIL_SHARE = 0.75


@dataclass(frozen=True, eq=False)
class Rescaling:
    """A non-decreasing map from scores to the float16 numbers in [0, 1], by their rank 0..15360.

    Attributes:
        scores: float64 (K,) ascending, distinct.
        ranks: float64 (K,) ascending, from 0 to 15360; linear in between.
    """

    scores: npt.NDArray[np.float64]
    ranks: npt.NDArray[np.float64]

    def apply(self, score: FloatMap) -> npt.NDArray[np.float16]:
        """Map a score map to float16 in [0, 1]; scores outside the knots take the end values."""
        ranks = np.rint(np.interp(score, self.scores, self.ranks))
        return ranks.astype(np.uint16).view(np.float16)


def fit_rescaling(scores: Iterable[FloatMap]) -> Rescaling:
    """Fit one map for a data set so that float16 keeps the ranking where AP is decided.

    A quarter of the 15361 float16 numbers in [0, 1] goes to quantiles of the scores, the rest to their upper
    tail, the same number to each factor by which the pixels above a score grow.

    Args:
        scores: Score maps, one at a time.

    Raises:
        DataError: There is no score, or all are equal.
    """
    state = StreamingPixels(capacity=1 << 18)
    for score in scores:
        state.update(score, np.zeros(score.shape, np.uint8))
    curve = state.curve()
    if len(curve.thresholds) < 2:
        raise DataError("scores", "are constant or empty", "a submission needs scores that rank pixels")
    above = np.asarray(curve.fp / curve.negatives, np.float64)
    tail = np.log((above + _TAIL) / (1 + _TAIL)) / np.log(_TAIL / (1 + _TAIL))
    along = ((1 - _TAIL_SHARE) * (1 - above) + _TAIL_SHARE * tail)[::-1]
    keep = np.searchsorted(along, np.linspace(along[0], along[-1], _LEVELS + 1))
    keep = np.unique(np.minimum(keep, len(along) - 1))
    knots, ranks = curve.thresholds[::-1][keep], along[keep]
    return Rescaling(knots, (ranks - ranks[0]) / (ranks[-1] - ranks[0]) * _LEVELS)


def write_submission(
    benchmark: Benchmark,
    read: ReadScore,
    out: Path,
    method: str,
    *,
    expected_count: int | None = None,
) -> list[Path]:
    """Write ``<out>/anomaly_p/<method>/<dataset>/<fid>.hdf5`` for every frame, and the rescaling beside them.

    All frames of a submission share one rescaling, so that they appear together: those of an earlier run are replaced.

    Args:
        benchmark: The frames; labels are not needed.
        read: Gives the score map of a frame.
        out: Folder of the submission.
        method: Name of the method on the leaderboard.
        expected_count: Frames that there must be; not checked when None.

    Returns:
        The files, checked by reading them back.

    Raises:
        DataError: The method's name is a path, the count is wrong, two frames have one name, the folder holds frames
            that this run would not replace, or a map is missing, has another size than its image, or is not finite.
    """
    if Path(method).name != method or method in {"", ".", ".."}:
        raise DataError("method", f"is '{method}'", "give a name without / or ..")
    dataset = DATASETS.get(benchmark.layout, benchmark.name)
    if expected_count is not None and len(benchmark) != expected_count:
        cure = "check root and split, or say how many there are to be: --expected-count, 0 for any number"
        raise DataError(benchmark.name, f"has {len(benchmark)} frames, {dataset} has {expected_count}", cure)

    def checked(sample: Sample) -> FloatMap:
        score = read(sample)
        check_score(sample.key, score, image_size(sample.image))
        return score

    folder = Path(out) / "anomaly_p" / method / dataset
    names = [f"{Path(sample.frame_id).name}.hdf5" for sample in benchmark]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        listed = ", ".join(twice[:10]) + (" ..." if len(twice) > 10 else "")
        cure = "rename the frames: the benchmark's files lie in one folder"
        raise DataError(benchmark.name, f"has several frames for one file: {listed}", cure)
    _refuse_other_frames(folder, names)
    rescaling = fit_rescaling(checked(sample) for sample in benchmark)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for sample, name in zip(benchmark, names, strict=True):
            _write_value(part / name, rescaling.apply(checked(sample)))
        check_submission([part / name for name in names], benchmark.samples)
        _take_place(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    stored = {"scores": rescaling.scores.tolist(), "ranks": rescaling.ranks.tolist()}
    atomic_write_json(Path(out) / f"{method}_{dataset}_{MAP_FILE}", stored, indent=None)
    return [folder / name for name in names]


def _take_place(part: Path, folder: Path) -> None:
    """Put ``part`` in the place of ``folder``, which comes back where that fails."""
    before = folder.with_name(f".{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        folder.rename(before)
    try:
        part.rename(folder)
    except BaseException:
        if before.exists():
            before.rename(folder)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _refuse_other_frames(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder with files that the frames ``names`` would not replace: they were scaled by another run."""
    others = sorted({path.name for path in folder.glob("*")} - set(names)) if folder.is_dir() else []
    if others:
        listed = ", ".join(others[:10]) + (" ..." if len(others) > 10 else "")
        raise DataError(
            folder,
            f"holds {len(others)} files that are not of this run: {listed}; frames of two runs are scaled differently",
            "remove the folder, choose another --out or --method, or write all frames in one run (--split all)",
        )


def check_submission(paths: Sequence[Path], samples: Sequence[Sample]) -> None:
    """Read a submission back as the benchmark does.

    Raises:
        DataError: A frame is missing or occurs twice, or a map has a wrong size, type or range.
    """
    import h5py

    if len(set(paths)) != len(samples):
        raise DataError(
            "submission", f"has {len(set(paths))} files for {len(samples)} frames", "names collide"
        )
    for path, sample in zip(paths, samples, strict=True):
        with h5py.File(path, "r") as file:
            value = file["value"]
            size, kind, lossless = tuple(value.shape), value.dtype, value[()]
        if kind != np.float16 or size != image_size(sample.image):
            raise DataError(path, f"holds {kind} {size}, expected float16 {image_size(sample.image)}", "")
        if not (np.isfinite(lossless).all() and lossless.min() >= 0 and lossless.max() <= 1):
            raise DataError(path, "holds values outside [0, 1]", "")


def _write_value(path: Path, value: npt.NDArray[np.float16]) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("value", data=value, compression="gzip", compression_opts=9)
