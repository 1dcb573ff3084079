"""Tables of results for the terminal, within 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anomdino.words import counted

COLUMNS = ("AP", "FPR95", "AUROC", "sIoU", "PPV", "F1*")
COUNTS = ("missed", "false")


def print_summary(metrics: Mapping[str, Any]) -> None:
    """Print ``metrics.json``: closed-set mIoU, then one table a benchmark, in percent, and its detector."""
    closed = metrics.get("closed_set")
    if closed:
        print(f"\nclosed set: mIoU {_percent(closed['mIoU'])} over {closed['classes']} classes")
    for name, block in metrics.items():
        if not (isinstance(block, Mapping) and "protocol" in block):
            continue
        print(
            f"\n{name}: {counted(block['images'], 'image')}, protocol {block['protocol']} (percent; components at 0.25)"
        )
        print(f"{'':12}" + "".join(f"{column:>9}" for column in (*COLUMNS, *COUNTS)))
        for output, row in block.items():
            if isinstance(row, Mapping) and "F1*" in row:
                shares = "".join(f"{_percent(row.get(column)):>9}" for column in COLUMNS)
                counts = "".join(f"{_count(row[column]):>9}" for column in COUNTS)
                print(f"{output:12}{shares}{counts}")
        for reason, columns in _reasons(block).items():
            print(f"-: {reason} ({', '.join(columns)})")
        if block.get("detector"):
            print(_detector_line(block["detector"]))


def _reasons(block: Mapping[str, Any]) -> dict[str, list[str]]:
    """Give why values of a benchmark are missing, with their names."""
    found: dict[str, list[str]] = {}
    for row in block.values():
        for name, reason in row.get("reasons", {}).items() if isinstance(row, Mapping) else ():
            if name in COLUMNS and name not in found.setdefault(reason, []):
                found[reason].append(name)
    return found


def _detector_line(detector: Mapping[str, Any]) -> str:
    inside = f"{_percent(detector['pixels_in_boxes'])} % of the anomalous pixels inside boxes"
    boxes = detector["boxes_per_image"]
    each = "-" if boxes is None else f"{boxes:.1f}"
    return f"detector: AR@100 {_percent(detector['AR100'])}, {inside}, {each} boxes an image"


def print_comparison(comparison: Mapping[str, Any], first: str, second: str) -> None:
    """Print the result of :func:`anomdino.evaluation.compare.compare_runs`."""
    print(
        f"difference = ({second}) - ({first}) in percent points, with an approximate 95 % interval over images"
    )
    print("p: share of swaps of the runs' images that differ as much; * = p < 0.05 (needs six images)")
    for benchmark, outputs in comparison.items():
        for output, block in outputs.items():
            protocol = "pooled over the shared images" if block["protocol"] is None else block["protocol"]
            print(f"\n{benchmark}, {output}: {counted(block['images'], 'image')}, protocol {protocol}")
            for metric, row in block["metrics"].items():
                mark = "*" if row["significant"] else " "
                span = (
                    f"[{100 * row['low']:+7.2f}, {100 * row['high']:+7.2f}]" if row["low"] is not None else ""
                )
                values = f"{_percent(row['first']):>8} -> {_percent(row['second']):>8}"
                chance = "" if row["p"] is None else f"p {row['p']:.3f}"
                print(
                    f"  {metric:6}{values}  {_signed(row['difference']):>8} {span:20} {chance} {mark}".rstrip()
                )
            for change in block["changed_most"]:
                print(f"    {change['key']}: {_change(change)}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f}"


def _change(change: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {_percent(change[name][0])} -> {_percent(change[name][1])}" for name in ("ap", "iou")
    )
