"""Unpacked data, wherever in it the expected files lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from anomdino.acquisition.registry import Expectation, RegisteredItem
from anomdino.errors import DataError

DEPTH = 4


@dataclass(frozen=True)
class Tree:
    """The files of an item before they are brought into the project's layout.

    Args:
        roots: Folders that were unpacked, or the one that the user unpacked.
        files: Downloaded files by id: weights, and archives from which members are picked.
        owned: Whether this project owns the files (then they may be linked), or the user.
        depth: How many levels of folders are searched, the roots included.
    """

    roots: tuple[Path, ...]
    files: Mapping[str, Path] = field(default_factory=dict)
    owned: bool = True
    depth: int = DEPTH

    def base(self, pattern: str) -> Path | None:
        """Give the shallowest folder in the tree below which ``pattern`` matches a file, or ``None``.

        Archives differ in whether they hold an outer folder; this finds the data in either case.
        """
        return next(
            (folder for folder in self._folders if next(folder.glob(pattern), None) is not None), None
        )

    def glob(self, pattern: str) -> list[Path]:
        """Give the files that match ``pattern`` below its base, sorted."""
        base = self.base(pattern)
        return sorted(path for path in base.glob(pattern) if path.is_file()) if base else []

    def need(self, pattern: str) -> Path:
        """Give the base of ``pattern``.

        Raises:
            DataError: Nothing matches.
        """
        base = self.base(pattern)
        if base is None:
            places = ", ".join(str(root) for root in self.roots) or "the downloaded files"
            raise DataError(places, f"holds nothing like {pattern}", "check that it is the right data set")
        return base

    @cached_property
    def _folders(self) -> list[Path]:
        return list(self._breadth_first())

    def _breadth_first(self) -> Iterator[Path]:
        level = list(self.roots)
        for _ in range(self.depth):
            yield from level
            level = [
                child
                for folder in level
                for child in sorted(folder.iterdir())
                if child.is_dir() and not child.name.startswith((".", "__MACOSX"))
            ]


def unpacked_by_hand(
    item: RegisteredItem, name: str, roots: Iterable[Path]
) -> tuple[tuple[int, Tree] | None, dict[Path, list[str]]]:
    """Look for the unpacked archives of an item in `<root>/<name>/`, or in `root` itself.

    Args:
        item: The item; its archives are what a person can unpack.
        name: Its name.
        roots: Folders in which a person puts things.

    Returns:
        The bundle and the tree that is complete, or ``None``; and for each `<root>/<name>/` that looks like the item
        and is not complete, what it lacks.
    """
    faults: dict[Path, list[str]] = {}
    for root in roots:
        for folder, depth in ((root / name, DEPTH), (root, 2)):
            if not folder.is_dir():
                continue
            tree = Tree((folder,), owned=False, depth=depth)
            wanted = [[*one, *item.picked] for one in item.layout]
            lacking = [layout_faults(tree, one) for one in wanted]
            complete = next((bundle for bundle, found in enumerate(lacking) if not found), None)
            if complete is not None:
                return (complete, tree), {}
            if folder != root and any(len(f) < len(e) for f, e in zip(lacking, wanted, strict=True)):
                faults[folder] = min(lacking, key=len)
    return None, faults


def layout_faults(tree: Tree, expected: list[Expectation]) -> list[str]:
    """Say what is missing in a tree; an empty list when it is complete."""
    faults = []
    for one in expected:
        found = len(tree.glob(one.pattern))
        if one.count is not None and found != one.count:
            faults.append(f"{found} files match {one.pattern}, expected {one.count}")
        elif one.count is None and found < one.least:
            faults.append(f"{found} files match {one.pattern}, expected {one.least} or more")
    return faults
