"""The page of the objects that were found in a video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anomdino.io.atomic import atomic_path
from anomdino.report.page import TEMPLATES, environment


def write_objects_page(
    path: Path,
    title: str,
    facts: Mapping[str, object],
    *,
    again: Iterable[Mapping[str, Any]],
    once: Iterable[Mapping[str, Any]],
    film: str = "",
) -> None:
    """Write a page with a picture of each object; memory does not grow with their number.

    Args:
        path: The page, ``.html``.
        title: Its heading.
        facts: Short facts under the heading.
        again: Objects seen in more than one look; each has ``id``, ``picture`` (its address), ``moment`` (seconds of the
            film), ``when``, ``looks``, ``score`` and ``pixels`` as they are to be read.
        once: Objects seen in one look.
        film: Address of the film, to which pictures lead; none if empty.

    Raises:
        DiskError: The disk is full or not writable.
    """
    template = environment().get_template("objects.html.j2")
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    parts = template.generate(title=title, facts=facts, again=again, once=once, film=film, css=css)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(parts)
