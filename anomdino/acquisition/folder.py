"""The source `folder`: the user's own images and labels, brought into the project's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anomdino.acquisition.pairs import Pair, copy_closed_set, copy_outliers
from anomdino.acquisition.staging import place
from anomdino.errors import DataError
from anomdino.io.listing import IMAGE_SUFFIXES, list_images, pair_by_key, walk_files
from anomdino.progress import track
from anomdino.protocol import MARKER, mark_evaluation_only, refuse_evaluation_data

HELD_OUT = 0.1


@dataclass(frozen=True)
class OwnFolders:
    """Where the user's data lie. ``None`` means absent.

    Args:
        train: Folder with ``images/`` and ``labels/``: closed-set training pairs with the same stems.
        val: The same for the closed-set held-out part; ``None`` splits one tenth off ``train``.
        outliers: Folder with ``images/`` and ``masks/``: objects for outlier exposure.
        benchmarks: Name and folder of each benchmark, in its native layout.
        weights: Folder with weight files.
    """

    train: Path | None = None
    val: Path | None = None
    outliers: Path | None = None
    benchmarks: Mapping[str, Path] = field(default_factory=dict)
    weights: Path | None = None

    @classmethod
    def of(cls, inlier: str, outliers: str, benchmarks: Mapping[str, str], weights: str) -> OwnFolders:
        """Take the folders as the parameters name them, with ``~`` expanded; an empty name is an absent part.

        Args:
            inlier: Folder with ``train/`` and, if there is one, ``val/``.
            outliers: Folder with ``images/`` and ``masks/``.
            benchmarks: Name and folder of each benchmark.
            weights: Folder with weight files.

        Raises:
            DataError: Nothing is named, or a folder is missing.
        """
        named = {"inlier": inlier, "outliers": outliers, "weights": weights}
        named |= {f"benchmarks.{name}": folder for name, folder in benchmarks.items()}
        there = {parameter: Path(folder).expanduser() for parameter, folder in named.items() if folder}
        if not there:
            raise DataError(
                "data.folder",
                "names no folder",
                "set data.folder.inlier, data.folder.outliers or data.folder.benchmarks",
            )
        for parameter, folder in there.items():
            if not folder.is_dir():
                raise DataError(f"data.folder.{parameter}", f"{folder} is not a folder", "correct the path")
        root = there.get("inlier")
        return cls(
            train=root / "train" if root else None,
            val=root / "val" if root and (root / "val").is_dir() else None,
            outliers=there.get("outliers"),
            benchmarks={name: there[f"benchmarks.{name}"] for name in benchmarks if benchmarks[name]},
            weights=there.get("weights"),
        )


def import_folders(own: OwnFolders, out: Path) -> dict[str, int]:
    """Bring the user's data into the folders ``inlier``, ``outliers``, ``val`` and ``weights``.

    Files are copied, never linked: DVC makes its files read-only, and the user's own shall stay as they are.
    Images and benchmarks are copied unchanged, labels and masks are checked and stored as single-channel PNG.
    Each benchmark is marked as evaluation data, and training parts that carry the mark are refused.

    Args:
        own: Where the data lie.
        out: The folder that gets them as sub-folders.

    Returns:
        Number of files by part, for example ``{"inlier/train": 367, "val/mine": 10}``.

    Raises:
        DataError: A pair is incomplete, a file is damaged or has wrong values, or a folder is missing.
        ProtocolError: A training part is marked as evaluation data.
    """
    refuse_evaluation_data(*(path for path in (own.train, own.val, own.outliers) if path is not None))
    counts: dict[str, int] = {}
    train, val = _closed_set_parts(own)
    for name, pairs in (("train", train), ("val", val)):
        if pairs:
            counts[f"inlier/{name}"] = copy_closed_set(pairs, out / "inlier" / name, f"inlier/{name}")
    if own.outliers is not None:
        counts["outliers"] = copy_outliers(_pairs(own.outliers, "masks"), out / "outliers", "outliers")
    for name, folder in sorted(own.benchmarks.items()):
        counts[f"val/{name}"] = copy_benchmark(folder, out / "val" / name)
    if own.weights is not None:
        counts["weights"] = _copy_tree(own.weights, out / "weights", "weights")
    return counts


def copy_benchmark(source: Path, target: Path) -> int:
    """Copy a benchmark unchanged and mark it as evaluation data; give the number of images and labels.

    Raises:
        DataError: ``source`` is missing or holds no image.
    """
    if not source.is_dir():
        raise DataError(source, "is not a folder", "check data.folder.benchmarks")
    images = sum(path.suffix.lower() in IMAGE_SUFFIXES for path in walk_files(source))
    if not images:
        raise DataError(source, "holds no images", "give the folder of the benchmark in its native layout")
    _copy_tree(source, target, f"val/{target.name}")
    mark_evaluation_only(target)
    return images


def listing_digest(own: OwnFolders) -> str:
    """Give a digest of names, sizes and times of the user's files, to see whether they changed."""
    digest = hashlib.sha256()
    roots = {"train": own.train, "val": own.val, "outliers": own.outliers, "weights": own.weights}
    roots |= {f"benchmark {name}": path for name, path in own.benchmarks.items()}
    for name, root in sorted((name, root) for name, root in roots.items() if root is not None):
        for path in walk_files(root):
            stat = path.stat()
            line = f"{name}\0{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))  # a name may be no Unicode
    return digest.hexdigest()


def _closed_set_parts(own: OwnFolders) -> tuple[list[Pair], list[Pair]]:
    train = _pairs(own.train, "labels") if own.train is not None else []
    if own.val is not None:
        return train, _pairs(own.val, "labels")
    if len(train) == 1:
        cure = "add pairs, or give the held-out ones in val/ beside train/"
        raise DataError(own.train, "holds one pair, and one has to be held out", cure)
    drawn = sorted((key for key, _, _ in train), key=_fraction)
    count = sum(_fraction(key) < HELD_OUT for key in drawn)
    held_out = set(drawn[: min(max(count, 1), len(drawn) - 1)])  # neither part stays empty
    return [pair for pair in train if pair[0] not in held_out], [
        pair for pair in train if pair[0] in held_out
    ]


def _fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _pairs(root: Path, labels: str) -> list[Pair]:
    for name in ("images", labels):
        if not (root / name).is_dir():
            raise DataError(
                root / name, "is not a folder", f"{root} needs the sub-folders images/ and {labels}/"
            )
    kind = "mask" if labels == "masks" else "label"
    pairs = pair_by_key(list_images(root / "images"), list_images(root / labels), ("image", kind))
    if not pairs:
        raise DataError(root, "holds no images", "")
    return pairs


def _copy_tree(source: Path, target: Path, what: str) -> int:
    files = [path for path in walk_files(source) if path.name != MARKER]
    for path in track(files, what, total=len(files), unit="file"):
        place(path, target / path.relative_to(source))
    return len(files)
