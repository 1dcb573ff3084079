"""Stage detect: boxes of anomalous objects, of the composed training images or of a benchmark.

Usage: python -m pipeline.detect train | benchmark NAME
"""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import _stage

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train() -> None:
    """Predict training images by detectors that did not train on them; suggest a threshold."""
    with _stage.stage("detect train", "detect") as params:
        from anomdino.detector.quality import rounded_down
        from anomdino.detector.records import read_records
        from anomdino.detector.run import detect_out_of_fold

        records = read_records(_stage.OOD_JSON, _stage.TRAIN_IMAGES, _stage.TRAIN_MAPS, _stage.TRAIN_LABELS)
        report, quality = detect_out_of_fold(
            _stage.DETECTOR,
            records,
            _stage.BOXES / "train.json",
            params.detect,
            _stage.device_of(params),
            _stage.RPL,
        )
        threshold = quality["suggested_threshold"]
        _stage.done(
            "detect train",
            images=report.images,
            boxes=report.boxes,
            images_without_boxes=report.empty,
            AR100=None if quality["AR@100"] is None else round(quality["AR@100"], 4),
            suggested_box_score=None if threshold is None else rounded_down(threshold, 4),
        )


@app.command()
def benchmark(name: Annotated[str, typer.Argument(help="A name of benchmark.sets")]) -> None:
    """Predict a benchmark by the final detector."""
    with _stage.stage(f"detect {name}", "detect", "benchmark") as params:
        from anomdino.detector.infer import Detector
        from anomdino.detector.run import Input, detect_set

        maps = _stage.SCORES / name / "maps"
        samples = _stage.open_benchmark(params, name).samples
        inputs = [Input(sample.key, sample.image, maps / f"{sample.key}.npz") for sample in samples]
        detector = Detector.load(_stage.DETECTOR, _stage.device_of(params), params.detect, _stage.RPL)
        report = detect_set(detector, inputs, _stage.BOXES / f"{name}.json", f"detect {name}")
        _stage.done(
            f"detect {name}", images=report.images, boxes=report.boxes, images_without_boxes=report.empty
        )


if __name__ == "__main__":
    app()
