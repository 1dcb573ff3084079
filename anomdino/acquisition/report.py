"""What a person is told: what is missing and what to do, and the state of every item."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from anomdino.acquisition.registry import RegisteredItem, Registry
from anomdino.acquisition.space import in_words
from anomdino.acquisition.store import Store

WIDTH = 100


def missing_screen(
    registry: Registry, missing: Mapping[str, Sequence[str]], ready: Iterable[str], store: Store
) -> str:
    """Write the screen that lists missing items: what, how big, under which terms, and what to do.

    Args:
        registry: The registry.
        missing: Ids of the missing files by item.
        ready: Names of the items that can be had.
        store: Tells where files put in place by hand are looked for.
    """
    files = {file for ids in missing.values() for file in ids}
    total, known = registry.sizes(files)
    at_least = "" if known else "at least "
    lines = [
        f"{len(missing)} items cannot be had from here ({len(files)} files, {at_least}{in_words(total)}):"
    ]
    for name, ids in missing.items():
        lines += ["", *_item_lines(registry, name, ids)]
    place = store.by_hand[0] if store.by_hand else "FOLDER"
    names = ", ".join(ready)
    lines += ["", f"Save the files under the names above in one folder ({place})."]
    if not store.by_hand:
        lines.append("and set it: `dvc repro` after `data.registry.from_dir: FOLDER` in params.yaml.")
    lines.append(
        "A data set that you have unpacked already: put it (or a link to it) in FOLDER/<item name>/."
    )
    if names:
        lines.append(f"Not missing: {names}. Nothing was downloaded yet.")
    return "\n".join(lines)


def _item_lines(registry: Registry, name: str, ids: Sequence[str]) -> list[str]:
    item = registry.item(name)
    lines = [f"  {name}: {item.title}, for {item.purpose}", *_wrapped(f"terms: {item.licence} {item.terms}")]
    if item.agreement:
        lines += _wrapped(f"by hand: {item.agreement}")
    for file in ids:
        entry = registry.files[file]
        about = "about " if entry.size is None and entry.about else ""
        pages = " or ".join(dict.fromkeys(source.page for source in entry.sources))
        lines.append(f"    {entry.name}  {about}{in_words(entry.expected_size)}  {pages}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.strip(), WIDTH, initial_indent="    ", subsequent_indent="      ")


def state_of(registry: Registry, item: RegisteredItem, store: Store) -> str:
    """Say in a few words which files of an item are in the store."""
    there = [[store.has(registry.files[file]) for file in bundle] for bundle in item.bundles]
    best = max(there, key=lambda found: sum(found) / len(found))
    if all(best):
        return "downloaded"
    parts = [
        bundle
        for bundle in item.bundles
        for file in bundle
        if store.path(registry.files[file]).with_name(f"{registry.files[file].name}.part").exists()
    ]
    if any(best):
        return f"{sum(best)} of {len(best)} files"
    return "begun" if parts else "absent"
