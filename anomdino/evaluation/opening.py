"""Finding the benchmark that a name on the command line means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from anomdino.benchmarks import (
    LAYOUTS,
    REGISTRY,
    Benchmark,
    Sample,
    open_benchmark,
    open_registered,
    open_set,
)
from anomdino.benchmarks.labels import BINARY_WITH_VOID
from anomdino.config.params import load_params
from anomdino.errors import ConfigError
from anomdino.io.listing import list_images, pair_by_key


def find_benchmark(
    name: str,
    root: Path | None = None,
    split: str | None = None,
    labels: Path | None = None,
    params: Path = Path("params.yaml"),
) -> Benchmark:
    """Open the benchmark of a name: one of ``params.yaml``, of the registry, or a layout.

    Args:
        name: Its name.
        root: Folder that holds it; needed unless ``params.yaml`` knows it.
        split: A split.
        labels: Folder of labels ``<key>.png`` with 0/1/255 that take the place of the benchmark's own.
        params: Parameter file.

    Raises:
        ConfigError: The name is unknown or the root is missing.
        DataError: See :func:`anomdino.benchmarks.open_benchmark`.
    """
    sets = load_params(params, only=("benchmark",)).benchmark.sets if params.is_file() else {}
    if name in sets:
        changes = {key: value for key, value in (("root", root), ("split", split)) if value is not None}
        opened = open_set(name, sets[name].model_copy(update=changes))
    elif name not in REGISTRY and name not in LAYOUTS:
        known = ", ".join([*sets, *REGISTRY, *LAYOUTS])
        raise ConfigError("--benchmark", f"'{name}' is unknown", f"known: {known}")
    elif root is None:
        raise ConfigError("--root", f"is needed for '{name}'", "give the folder that holds the data set")
    elif name in REGISTRY:
        opened = open_registered(name, root, split)
    else:
        opened = open_benchmark(name, root, split, name=name)
    return opened if labels is None else _with_labels(opened, labels)


def _with_labels(benchmark: Benchmark, folder: Path) -> Benchmark:
    images = {sample.key: sample.image for sample in benchmark}
    pairs = {key: label for key, _, label in pair_by_key(images, list_images(folder))}
    samples = tuple(_relabelled(sample, pairs[sample.key]) for sample in benchmark)
    return replace(benchmark, samples=samples, label_map=BINARY_WITH_VOID)


def _relabelled(sample: Sample, label: Path) -> Sample:
    return replace(sample, label=label)
