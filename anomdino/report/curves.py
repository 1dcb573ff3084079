"""Curves as SVG that reads on light and dark paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.sax.saxutils import escape

COLOURS = ("#8a8f98", "#d08700", "#b04ad8", "#1f8ad6", "#d6336c", "#12a36d", "#6b6b00")
_INK = "#808890"
"""Stands for the ink of the page while matplotlib draws, which knows no `currentColor`."""
SIZE = (4.6, 3.4)
"""Width and height of a plot, in inches of 72 px."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot: equally long sequences of x and y."""

    x: Sequence[float]
    y: Sequence[float]


def curve_svg(
    title: str,
    curves: Mapping[str, Curve],
    x_label: str,
    y_label: str,
    *,
    x_log: bool = False,
) -> str:
    """Draw curves into one inline SVG element with the same bytes for the same input.

    Args:
        title: Above the plot.
        curves: Lines by name; the order fixes the colours.
        x_label: Below the plot.
        y_label: Left of the plot.
        x_log: Logarithmic x axis; values of 0 are left out.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "anomdino",
        "svg.fonttype": "none",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _INK,
        "font.size": 9,
        "font.family": "sans-serif",
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        for index, (name, curve) in enumerate(curves.items()):
            pairs = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x > 0 or not x_log]
            colour = COLOURS[index % len(COLOURS)]
            axes.plot([x for x, _ in pairs], [y for _, y in pairs], label=name, color=colour, linewidth=1.6)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if x_log:
            axes.set_xscale("log")
        axes.grid(alpha=0.25, color=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        if curves:
            axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
        stream = StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    label = escape(f"{title}: {y_label} against {x_label}", {'"': "&quot;"})
    named = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return named.replace(_INK, "currentColor")
