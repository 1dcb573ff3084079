"""Opening a benchmark from disk, checked against what is known of it."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from anomdino.benchmarks.labels import LabelMap
from anomdino.benchmarks.layouts import check_split, folder, with_tags
from anomdino.benchmarks.model import Benchmark, ComponentLimits
from anomdino.benchmarks.registry import LAYOUTS, REGISTRY
from anomdino.config.benchmark import BenchmarkSet
from anomdino.errors import ConfigError, DataError


def open_benchmark(
    layout: str,
    root: Path | str,
    split: str | None = None,
    *,
    name: str | None = None,
    expected_count: int | None = None,
    label_map: LabelMap | None = None,
    limits: ComponentLimits | None = None,
    protocol: str | None = None,
    images: str = "images",
    labels: str = "labels",
    roi: Path | str | None = None,
) -> Benchmark:
    """Open an evaluation set; images and labels are paired by key, nothing is decoded yet.

    Args:
        layout: A name of ``LAYOUTS``.
        root: Folder that holds the set.
        split: A split of the layout; its first one by default.
        name: Name that results are filed under; the folder's name by default.
        expected_count: Frames that there must be; not checked when None.
        label_map: Meaning of the raw label values, in place of the layout's.
        limits: Component limits, in place of the layout's.
        protocol: Pixel protocol, in place of the layout's.
        images: Folder of images (layout ``folder`` alone).
        labels: Folder of labels (layout ``folder`` alone).
        roi: Image whose non-zero pixels are the region of interest (see :class:`Benchmark`).

    Raises:
        ConfigError: Layout or split is unknown.
        DataError: Folders are missing, partners are missing, or the count is wrong.
    """
    if layout not in LAYOUTS:
        near = difflib.get_close_matches(layout, LAYOUTS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError("benchmark layout", f"'{layout}' is unknown", f"{hint}known: {', '.join(LAYOUTS)}")
    chosen, root = LAYOUTS[layout], Path(root)
    split = split or (chosen.splits[0] if chosen.splits else "")
    check_split(layout, split, chosen.splits)
    if not root.is_dir():
        raise DataError(
            root, "is not a folder", "check the root of the benchmark, or run `dvc repro download`"
        )
    found = folder(root, split, images, labels) if layout == "folder" else chosen.discover(root, split)
    name = name or root.resolve().name
    if expected_count is not None and len(found) != expected_count:
        raise DataError(
            root,
            f"holds {len(found)} frames in split '{split}', {name} has {expected_count}",
            "complete the download, choose another split, or set expected_count",
        )
    return Benchmark(
        name=name,
        layout=layout,
        split=split,
        samples=tuple(with_tags(found, root)),
        label_map=label_map or chosen.label_map,
        limits=limits or chosen.limits,
        protocol=protocol or chosen.protocol,
        roi=None if roi is None else Path(roi),
    )


def open_registered(
    entry: str, root: Path | str, split: str | None = None, *, expected_count: int | None = None
) -> Benchmark:
    """Open a published evaluation set and check its number of frames.

    Args:
        entry: A name of ``REGISTRY``.
        root: Folder that holds the set.
        split: A split; the entry's default when None.
        expected_count: Overrides the registry's number of frames.

    Raises:
        ConfigError: There is no such entry.
        DataError: See :func:`open_benchmark`.
    """
    if entry not in REGISTRY:
        near = difflib.get_close_matches(entry, REGISTRY, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError("benchmark", f"'{entry}' is not registered", f"{hint}known: {', '.join(REGISTRY)}")
    known = REGISTRY[entry]
    split = split or known.split
    return open_benchmark(
        known.layout,
        root,
        split,
        name=entry,
        expected_count=known.counts.get(split) if expected_count is None else expected_count,
    )


def check_set(name: str, settings: BenchmarkSet) -> tuple[str, str | None]:
    """Check layout, entry and split of a benchmark of ``params.yaml``; nothing on disk is looked at.

    Args:
        name: Its name there.
        settings: Its settings.

    Returns:
        Its layout, and its split, ``None`` for the layout's first one.

    Raises:
        ConfigError: One of them is unknown.
    """
    for key, value, known in (("entry", settings.entry, REGISTRY), ("layout", settings.layout, LAYOUTS)):
        if value and value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            cure = f"{hint}known: {', '.join(known)}"
            raise ConfigError(f"benchmark.sets.{name}.{key}", f"'{value}' is unknown", cure)
    entry = REGISTRY[settings.entry] if settings.entry else None
    layout = settings.layout or (entry.layout if entry else "folder")
    split = settings.split or (entry.split if entry else None)
    if split:
        check_split(layout, split, LAYOUTS[layout].splits)
    return layout, split


def open_set(name: str, settings: BenchmarkSet) -> Benchmark:
    """Open a benchmark of ``params.yaml`` (block ``benchmark.sets``).

    Args:
        name: Its name there.
        settings: Its settings; what is unset comes from the registry entry or the layout.

    Raises:
        ConfigError: Layout, entry or split is unknown.
        DataError: See :func:`open_benchmark`.
    """
    layout, split = check_set(name, settings)
    entry = REGISTRY[settings.entry] if settings.entry else None
    count = settings.expected_count
    if count is None and entry is not None and split is not None:
        count = entry.counts.get(split)
    base = LAYOUTS[layout].limits
    return open_benchmark(
        layout,
        settings.root,
        split,
        name=name,
        expected_count=count,
        label_map=_label_map(settings, layout),
        limits=ComponentLimits(
            base.min_predicted if settings.min_predicted is None else settings.min_predicted,
            base.min_gt if settings.min_gt is None else settings.min_gt,
        ),
        protocol=settings.protocol,
        roi=settings.roi,
    )


def _label_map(settings: BenchmarkSet, layout: str) -> LabelMap | None:
    """Give the meaning of label values where the settings change it; None leaves it to the layout."""
    if settings.labels:
        return LabelMap.from_values(settings.labels, settings.other_labels)
    if settings.other_labels is None:
        return None
    return replace(LAYOUTS[layout].label_map, rest=settings.other_labels)
