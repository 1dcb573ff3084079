"""How often 95 % intervals over images hold the truth, and how often runs that differ by chance alone get a star.

    python benchmarks/intervals.py --sets 300

Draws small sets of images from large simulated populations whose pooled metrics are known: `plain` (images differ in
how well their anomalies are scored), `shifted` (the whole score of an image moves too, as on real photos) and `clean`
(shifted, three images of ten without any anomaly). Prints the share of sets whose interval holds the population's value,
for percentiles of the resamplings and for `anomdino.evaluation.bootstrap.intervals`; then, for pairs of
exchangeable runs, the share of stars by an interval of percentiles without zero and by the swaps of `compare`.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from anomdino.evaluation.bootstrap import (
    ImageCounts,
    ImageHistograms,
    gathered,
    intervals,
    resamplings,
)
from anomdino.evaluation.swaps import RunImages, swap_test

EDGES = np.linspace(6, -4, 60)
PIXELS = 3000
LEVELS = np.linspace(0.25, 0.75, 11)
RESAMPLES = 400


def histograms(gain: np.ndarray, shift: np.ndarray, anomalies: np.ndarray) -> ImageHistograms:
    """Expected histograms of normal scores: N(shift, 1) in-distribution, N(shift + gain, 1) anomalous."""
    above = [1 - norm.cdf(EDGES - mean[:, None]) for mean in (gain + shift, shift)]
    for part in above:
        part[:, -1] = 1
    tp, fp = (np.diff(part, prepend=0, axis=1) for part in above)
    return ImageHistograms(EDGES, tp * anomalies[:, None], fp * (PIXELS - anomalies)[:, None])


def population(kind: str, images: int, rng: np.random.Generator) -> RunImages:
    """Draw images: histograms, and components that are found the better the higher the image's gain."""
    gain, anomalies = rng.normal(2.2, 1, images), PIXELS * 10 ** rng.uniform(-2.5, -0.7, images)
    shift = np.zeros(images) if kind == "plain" else rng.normal(0, 0.5, images)
    if kind == "clean":
        anomalies = np.where(rng.random(images) < 0.3, 0, anomalies)
    quality = 1 / (1 + np.exp(2.2 - gain))
    objects = np.where(anomalies > 0, rng.poisson(1.5, images) + (kind != "clean"), 0)
    found = [
        rng.beta(1 + 4 * q, 5 - 4 * q, n) * (rng.random(n) < 0.5 + 0.5 * q)
        for q, n in zip(quality, objects, strict=True)
    ]
    invented = [rng.beta(1, 3, n) for n in rng.poisson(2.3 - 2 * quality)]
    tp = np.array([(siou[:, None] >= LEVELS).sum(axis=0) for siou in found])
    fp = np.array([(ppv[:, None] < LEVELS).sum(axis=0) for ppv in invented])
    hit = [np.clip(siou[siou > 0] + 0.2, 0, 1) for siou in found]
    counts = ImageCounts(
        tp,
        objects[:, None] - tp,
        fp,
        np.array([siou.sum() for siou in found]),
        np.array([one.sum() + two.sum() for one, two in zip(invented, hit, strict=True)]),
        np.array([len(one) + len(two) for one, two in zip(invented, hit, strict=True)]),
    )
    return RunImages(histograms(gain, shift, anomalies), counts)


def coverage(kind: str, sizes: list[int], sets: int, rng: np.random.Generator) -> None:
    everything = population(kind, 20_000, rng)
    truth = {name: value[0] for name, value in everything.values(np.ones((1, 20_000))).items()}
    for size in sizes:
        held: dict[str, list[tuple[bool, bool]]] = {name: [] for name in truth}
        for _ in range(sets):
            some = everything.chosen(rng.choice(20_000, size, replace=False))
            plain = {name: float(value[0]) for name, value in some.values(np.ones((1, size))).items()}
            measured = {name: value if np.isfinite(value) else None for name, value in plain.items()}
            given = intervals(some.histograms, some.counts, RESAMPLES, rng, measured)
            drawn = gathered(some.values, resamplings(size, RESAMPLES, rng))
            for name, (low, high) in given.items():
                ends = np.nanpercentile(drawn[name], [2.5, 97.5])
                held[name].append((bool(ends[0] <= truth[name] <= ends[1]), low <= truth[name] <= high))
        shown = ", ".join(
            f"{name} {shares[0]:.0%} -> {shares[1]:.0%}"
            for name, values in held.items()
            if len(shares := np.mean(values, axis=0))
        )
        print(f"{kind}, {size} images: {shown}", flush=True)


def false_stars(sizes: list[int], pairs: int, rng: np.random.Generator) -> None:
    for size in sizes:
        stars: dict[str, list[tuple[bool, bool]]] = {}
        for _ in range(pairs):
            hard, anomalies = rng.normal(2, 1, size), PIXELS * 10 ** rng.uniform(-2.5, -0.7, size)
            runs = [
                RunImages(histograms(hard + rng.normal(0, 0.5, size), np.zeros(size), anomalies), None)
                for _ in range(2)
            ]
            draws = list(resamplings(size, RESAMPLES, rng))
            drawn = [gathered(run.values, iter(draws)) for run in runs]
            for name, p in swap_test(*runs, RESAMPLES, rng).items():
                low, high = np.nanpercentile(drawn[1][name] - drawn[0][name], [2.5, 97.5])
                stars.setdefault(name, []).append((bool(low > 0 or high < 0), p is not None and p < 0.05))
        shown = ", ".join(
            f"{name} {share[0]:.0%} -> {share[1]:.0%}"
            for name, values in stars.items()
            if len(share := np.mean(values, axis=0))
        )
        print(f"stars by chance, {size} images: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--images", type=int, nargs="+", default=[5, 10, 30])
    parser.add_argument("--kinds", nargs="*", default=["plain", "shifted", "clean"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print("share of 95 % intervals that hold the truth, percentiles -> ours")
    for kind in options.kinds:
        coverage(kind, options.images, options.sets, rng)
    print("share of stars among runs that differ by chance, percentiles -> swaps")
    false_stars([2, *options.images], options.sets, rng)


if __name__ == "__main__":
    main()
