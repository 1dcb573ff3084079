"""What a person is told: what is missing and what to do, and the state of every item."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from anomdino.acquisition.registry import Registry
from anomdino.acquisition.space import in_words
from anomdino.acquisition.store import Store
from anomdino.acquisition.transfer import part_of
from anomdino.acquisition.tree import unpacked_by_hand
from anomdino.words import counted

WIDEST, NARROWEST = 100, 60
MOST_FILES = 2


def missing_screen(
    registry: Registry,
    missing: Mapping[str, Sequence[str]],
    ready: Iterable[str],
    store: Store,
    faults: Mapping[Path, str] | None = None,
    offline: bool = False,
) -> str:
    """Write the screen that lists missing items: what, how big, under which terms, and what to do.

    Args:
        registry: The registry.
        missing: Ids of the missing files by item.
        ready: Names of the items that can be had.
        store: Tells where files put in place by hand are looked for.
        faults: What was put in place by hand and cannot be used, with the reason.
        offline: Whether the network was not to be used.
    """
    files = {file for ids in missing.values() for file in ids}
    total, known = registry.sizes(files)
    place = str(store.by_hand[0]) if store.by_hand else "FOLDER"
    at_least = "" if known else "at least "
    by_hand = [name for name, ids in missing.items() if any(_needs_person(registry, file) for file in ids)]
    others = [name for name in missing if name not in by_hand]
    items, lacking = counted(len(missing), "item"), counted(len(files), "file")
    lines = [f"{items} cannot be had from here; missing: {lacking}, {at_least}{in_words(total)}."]
    if by_hand:
        lines.append("To be got by a person, as a login and an agreement are needed:")
        lines += [line for name in by_hand for line in _item_lines(registry, name, missing[name], place)]
    if others:
        lines.append(
            "Not here, and the network is not to be used:"
            if offline
            else "No source answers (is this machine online?):"
        )
        lines += [line for name in others for line in _item_lines(registry, name, missing[name], place)]
    lines += ["Put in place by hand, but of no use:"] if faults else []
    for path, fault in (faults or {}).items():
        lines += _wrapped(f"{path} {fault}", "  ")
    if store.by_hand and not faults and not ready:
        lines += _wrapped(_contents(store.by_hand[0]), "")
    lines += _wrapped(
        f"Save the files under these names in one folder, or an unpacked set in {place}/<item>/, and set "
        f"data.registry.from_dir: {place} in params.yaml. Nothing was downloaded.",
        "",
    )
    names = ", ".join(ready)
    return "\n".join([*lines, *_wrapped(f"Not missing: {names}." if names else "", "")])


def _contents(folder: Path) -> str:
    """Say what lies in a folder in which nothing was found."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name[0] != ".")
    held = f"only {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}" if names else "nothing"
    return f"{folder} holds {held}, none of it under a name that is looked for."


def _needs_person(registry: Registry, file: str) -> bool:
    return all(source.by_hand for source in registry.files[file].sources)


def _item_lines(registry: Registry, name: str, ids: Sequence[str], place: str) -> list[str]:
    item = registry.item(name)
    size, known = registry.sizes(ids)
    words = in_words(size) if known else f"> {in_words(size)}" if size else "size unknown"
    lines = [*_wrapped(f"{name} ({words}; terms: {item.licence})", "  "), *_wrapped(item.agreement)]
    entries = [registry.files[file] for file in ids]
    if len(entries) > MOST_FILES and all(entry.published for entry in entries):
        names = _listed([entry.published for entry in entries])
        return [*lines, *_wrapped(f"{item.homepage} {names} into {place}/{name}/")]
    pages: dict[str, list[str]] = {}
    for entry in entries:
        pages.setdefault(entry.sources[0].page.partition("?")[0], []).append(entry.name)
    for page, saved in pages.items():
        lines += _wrapped(page if page.endswith(f"/{saved[0]}") else f"{page} as {_listed(saved)}")
    return lines


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*([", ".join(names[:-1])] if len(names) > 1 else []), names[-1]])


def _wrapped(text: str, indent: str = "      ", first: str | None = None) -> list[str]:
    """Wrap words to the terminal; what is longer than a line, as an address may be, stays in one piece."""
    width = min(max(shutil.get_terminal_size((WIDEST, 24)).columns - 1, NARROWEST), WIDEST)
    return textwrap.wrap(
        text.strip(),
        max(width, len(indent) + NARROWEST // 3),
        initial_indent=indent if first is None else first,
        subsequent_indent=f"{indent}  " if indent == "  " else indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def state_of(registry: Registry, name: str, store: Store) -> str:
    """Say in a few words which files of an item are in the store, or lie where a person puts them."""
    item = registry.item(name)
    there = [[store.has(registry.files[file]) for file in bundle] for bundle in item.bundles]
    best = max(there, key=lambda found: sum(found) / len(found))
    if all(best):
        return "downloaded"
    by_hand = [
        [
            store.has(registry.files[file]) or bool(store.found_by_hand(registry.files[file], name))
            for file in bundle
        ]
        for bundle in item.bundles
    ]
    if any(all(found) for found in by_hand) or unpacked_by_hand(item, name, store.by_hand)[0]:
        return "by hand"
    if any(best):
        return f"{sum(best)} of {len(best)} files"
    begun = any(part_of(store.path(file)).exists() for file in registry.files_of(name))
    return "begun" if begun else "absent"


def item_table(registry: Registry, names: Iterable[str], store: Store, wanted: set[str]) -> str:
    """Write a table of items; ``*`` marks those that params.yaml names."""
    rows = [("item", "state", "size", "part", "licence")]
    for name in names:
        item = registry.item(name)
        size, known = registry.sizes(item.bundles[0])
        words = in_words(size) if known else f"> {in_words(size)}" if size else "unknown"
        mark = "*" if name in wanted else ""
        rows.append((name + mark, state_of(registry, name, store), words, item.part, item.licence))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for row in rows:
        start = "".join(f"{cell.ljust(width)}  " for cell, width in zip(row[:4], widths, strict=True))
        lines += _wrapped(row[4], " " * len(start), start)
    return "\n".join(
        [*lines, "", "* in data.registry.items. `anomdino data list NAME` shows terms and addresses."]
    )


def item_details(registry: Registry, name: str, store: Store) -> str:
    """Write everything that is known about an item."""
    item = registry.item(name)
    lines = [f"{name}: {item.title} ({state_of(registry, name, store)})"]
    facts = {
        "for": item.purpose,
        "licence": f"{item.licence} {item.terms}",
        "by hand": item.agreement,
        "note": item.note,
        "home": item.homepage,
        "cite": item.cite,
    }
    for key, text in facts.items():
        lines += _wrapped(f"{key}: {text}") if text else []
    for number, bundle in enumerate(item.bundles):
        lines += ["    or:"] if number else []
        for file in bundle:
            entry = store.recorded.completed(registry.files[file])
            about = "about " if entry.size is None and entry.about else ""
            digest = (
                f"sha256 {entry.sha256}"
                if entry.sha256
                else f"md5 {entry.md5}"
                if entry.md5
                else f"sha256 {entry.sha256_prefix}..."
                if entry.sha256_prefix
                else "no digest known"
            )
            lines.append(f"    {entry.name}  {about}{in_words(entry.expected_size)}  {digest}")
            lines += [f"      {source.page}" for source in store.sources(entry)]
    return "\n".join(lines)
