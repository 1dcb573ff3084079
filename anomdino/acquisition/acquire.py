"""From the list of wanted items to the project's folders: plan, get, unpack, check, normalise."""

from __future__ import annotations

import filecmp
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anomdino.acquisition.archives import ArchiveLimits, unpack
from anomdino.acquisition.normalise import NORMALISERS
from anomdino.acquisition.registry import RegisteredFile, RegisteredItem, Registry, load_registry
from anomdino.acquisition.report import missing_screen
from anomdino.acquisition.sources import address_of, local_path, unreachable
from anomdino.acquisition.space import disk_errors, in_words, require_space
from anomdino.acquisition.staging import merge_tree, remove_tree, scratch_folder, staged_folder
from anomdino.acquisition.store import Store
from anomdino.acquisition.transfer import Patience
from anomdino.acquisition.tree import Tree, layout_faults, unpacked_by_hand
from anomdino.config.acquisition import RegistryConfig
from anomdino.errors import ConfigError, DataError, DiskError
from anomdino.io.atomic import atomic_write_text, require_folder
from anomdino.io.locking import exclusive

log = logging.getLogger(__name__)

State = Literal["here", "by hand", "online", "missing"]


@dataclass(frozen=True)
class Plan:
    """How an item will be had.

    Args:
        name: The item.
        item: Its registration.
        bundle: Which of its sets of files is taken.
        files: Ids of those files with their state.
        unpacked: What a person unpacked; then no file is needed.
        faults: What a person put in place and cannot be used, with the reason.
    """

    name: str
    item: RegisteredItem
    bundle: int
    files: dict[str, State]
    unpacked: Tree | None = None
    faults: Mapping[Path, str] = field(default_factory=dict)

    @property
    def possible(self) -> bool:
        """Whether every file is here, was put in place by hand, or can be downloaded."""
        return self.unpacked is not None or "missing" not in self.files.values()


def store_of(config: RegistryConfig, given: dict[str, Path] | None = None) -> Store:
    """Give the store that a ``data.registry`` block describes."""
    by_hand = [Path(config.from_dir).expanduser()] if config.from_dir else []
    if by_hand and not by_hand[0].is_dir():
        raise DataError("data.registry.from_dir", f"{by_hand[0]} is not a folder", "correct the path")
    return Store(
        Path(config.downloads).expanduser(),
        by_hand=by_hand,
        given=given or {},
        mirror=config.mirror,
        patience=Patience(total=config.time_limit),
    )


def acquire(config: RegistryConfig, out: Path, registry: Registry | None = None) -> dict[str, int]:
    """Get all wanted items and lay them out below ``out``.

    Nothing is downloaded before it is clear that every item can be had.

    Args:
        config: The checked ``data.registry`` block.
        out: The folder that gets ``inlier``, ``outliers``, ``val`` and ``weights``.
        registry: The registry; ``None`` takes the one that the block names.

    Returns:
        Number of files by part.

    Raises:
        DataError: Items cannot be had; the message lists all of them with size, terms and what to do.
        DiskError: There is no room.
    """
    registry = registry or load_registry(config.file)
    store = store_of(config)
    counts: Counter[str] = Counter()
    with disk_errors(store.folder), exclusive(store.lock):
        plans = plan(registry, config.items, store, config.offline)
        require_possible(registry, plans, store, config.offline)
        require_room(registry, plans, store)
        for one in plans:
            counts.update(get_item(registry, one, store, out, config.keep_unpacked))
    return dict(counts)


def fetch_items(
    registry: Registry,
    names: list[str],
    config: RegistryConfig,
    given: dict[str, Path] | None = None,
    into: Path | None = None,
) -> dict[str, int]:
    """Get items into the store and, if ``into`` is given, lay them out below it beside what is there.

    Args:
        registry: The registry.
        names: Items.
        config: Where downloads are kept, and where files put in place by hand may be.
        given: Files that a person named one by one, by registered name.
        into: The folder to fill; files that are there already must be the same ones.

    Returns:
        Number of files by part; without ``into`` the number of stored files by item.

    Raises:
        ConfigError: ``into`` is a file or would lie below one.
        DataError: Something cannot be had, or ``into`` holds other files under the same names.
    """
    if into is not None:
        require_folder(into, "--into")
    store = store_of(config, given)
    _require_wanted(registry, names, store)
    counts: Counter[str] = Counter()
    with disk_errors(into or store.folder), exclusive(store.lock):
        plans = plan(registry, names, store, config.offline)
        require_possible(registry, plans, store, config.offline)
        require_room(registry, plans, store)
        for one in plans:
            if into is None:
                stored = [store.get(registry.files[file], one.name) for file in one.files]
                counts[one.name] = len(stored)
                continue
            with scratch_folder(into / ".get") as work:
                counts.update(get_item(registry, one, store, work, config.keep_unpacked))
                merge_tree(work, into)
    return dict(counts)


def _require_wanted(registry: Registry, names: list[str], store: Store) -> None:
    """Check that every file that a person named is one of the items', and not another one than is stored.

    Raises:
        DataError: It would be ignored.
    """
    wanted = {file.name: file for file in registry.files_of(*names)}
    for name, path in store.given.items():
        if name not in wanted:
            cause = f"is given for {name}, which {', '.join(names)} does not have"
            raise DataError(path, cause, "name the item that it belongs to; `anomdino data where` shows them")
        stored = store.path(wanted[name])
        if stored.is_file() and store.has(wanted[name]) and not filecmp.cmp(path, stored, shallow=False):
            raise DataError(path, f"differs from {stored}, which is there already", "remove that one first")


@contextmanager
def looking_at(store: Store) -> Iterator[None]:
    """Look at a store. While another run downloads to it, and where nothing may be written, it gets no records."""
    with ExitStack() as held:
        if store.folder.is_dir():
            try:
                held.enter_context(exclusive(store.lock, wait=0))
            except (DataError, DiskError):
                store.records = False
        yield


def verify_items(registry: Registry, names: list[str], store: Store) -> tuple[list[str], dict[str, str]]:
    """Check the stored files of items in full.

    Returns:
        Names of the good files, and name and fault of the others; files that are not there are in neither.
    """
    good: list[str] = []
    bad: dict[str, str] = {}
    for file in registry.files_of(*names):
        if store.path(file).is_file():
            fault = store.verify(file)
            good += [] if fault else [file.name]
            bad |= {file.name: fault} if fault else {}
    return good, bad


def plan(registry: Registry, names: Iterable[str], store: Store, offline: bool = False) -> list[Plan]:
    """Find out, without downloading anything, how each item can be had.

    For an item with several bundles the first possible one is taken, and one that is here already before one
    that has to be downloaded.

    Args:
        registry: The registry.
        names: Items.
        store: The downloaded files, and where files put in place by hand may be.
        offline: Whether the network is not to be used.

    Raises:
        ConfigError: An item is not registered, or names no known way to normalise it.
    """
    items = {name: registry.item(name) for name in names}
    for name, item in items.items():
        if item.normalise not in NORMALISERS:
            known = ", ".join(NORMALISERS)
            raise ConfigError(
                f"items.{name}.normalise", f"'{item.normalise}' is unknown", f"choose from {known}"
            )
    wanted = {file for item in items.values() for bundle in item.bundles for file in bundle}
    dead = _dead_addresses(registry, wanted, store, offline)
    return [_plan_item(registry, name, item, store, dead) for name, item in items.items()]


def require_possible(registry: Registry, plans: list[Plan], store: Store, offline: bool = False) -> None:
    """Refuse plans that have a missing file, with one screen that says what is missing and what to do.

    Raises:
        DataError: Something is missing.
    """
    lacking = [one for one in plans if not one.possible]
    if lacking:
        ready = [one.name for one in plans if one.possible]
        names = {
            one.name: [file for file, state in one.files.items() if state == "missing"] for one in lacking
        }
        faults = {path: fault for one in lacking for path, fault in one.faults.items()}
        raise DataError(
            "data.registry.items",
            missing_screen(registry, names, ready, store, faults, offline),
            "then run again (`anomdino data list` shows every item, `anomdino data get NAME` gets one)",
        )


def require_room(registry: Registry, plans: list[Plan], store: Store) -> None:
    """Check before the first byte that there is room for all downloads and for their unpacked content.

    An archive of pictures unpacks to about its own size; one that is kept unpacked needs no room. Files of unknown size
    are not counted; each transfer and each unpacking checks again with what is known then.

    Raises:
        DiskError: There is too little space.
    """
    files = {file: state for one in plans for file, state in one.files.items()}
    picked = {file for one in plans for file in one.item.pick}
    downloads = sum(
        max((registry.files[file].expected_size or 0) - store.begun(registry.files[file]), 0)
        for file, state in files.items()
        if state == "online"
    )
    unpacked = sum(
        registry.files[file].expected_size or 0
        for file in files
        if registry.files[file].archive and file not in picked and not _unpacked(store, file).is_dir()
    )
    what = f"getting {in_words(downloads)} and unpacking {in_words(unpacked)}"
    require_space(store.folder, downloads + unpacked, what)


def get_item(
    registry: Registry, wanted: Plan, store: Store, out: Path, keep_unpacked: bool = False
) -> dict[str, int]:
    """Get one item and lay it out below ``out``.

    Args:
        registry: The registry.
        wanted: How it is had.
        store: The downloaded files.
        out: The folder that gets the item's part (``inlier``, ``val``, ...).
        keep_unpacked: Keep its archives unpacked beside the downloads.

    Returns:
        Number of files by part.

    Raises:
        DataError: A file cannot be had, an archive is refused, or the layout is not the expected one.
    """
    item = wanted.item
    if item.note:
        log.info("%s: %s", wanted.name, item.note)
    with _tree(registry, wanted, store, keep_unpacked) as tree:
        faults = layout_faults(tree, item.expectations(wanted.bundle)) if tree.roots else []
        if faults:
            raise DataError(
                wanted.unpacked.roots[0] if wanted.unpacked else wanted.name,
                "does not have the expected layout:\n  " + "\n  ".join(faults),
                f"check that it is {item.title}; see {item.homepage}",
            )
        return NORMALISERS[item.normalise](tree, out)


@contextmanager
def _tree(registry: Registry, wanted: Plan, store: Store, keep: bool) -> Iterator[Tree]:
    if wanted.unpacked is not None:
        yield wanted.unpacked
        return
    item = wanted.item
    paths = {file: store.get(registry.files[file], wanted.name) for file in wanted.files}
    with ExitStack() as cleanup:
        roots = []
        for file, path in paths.items():
            if registry.files[file].archive and file not in item.pick:
                folder = _unpacked(store, file)
                unpacked_once(path, registry.files[file], folder)
                roots.append(folder)
                if not keep:
                    cleanup.callback(_remove_unpacked, folder)
        yield Tree(tuple(roots), files=paths)


def unpacked_once(path: Path, file: RegisteredFile, folder: Path) -> None:
    """Unpack an archive to ``folder`` unless that was done before with an archive of the same size and time."""
    note = _note_of(folder)
    stat = path.stat()
    made_of = json.dumps({"size": stat.st_size, "modified": stat.st_mtime_ns})
    if folder.is_dir() and note.is_file() and note.read_text(encoding="utf-8") == made_of:
        return
    _remove_unpacked(folder)
    with staged_folder(folder) as staging:
        unpack(path, staging, ArchiveLimits(file.members, file.unpacked))
    atomic_write_text(note, made_of)


def _unpacked(store: Store, file: str) -> Path:
    return store.folder / f"{file}.unpacked"


def _note_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _remove_unpacked(folder: Path) -> None:
    """Remove an unpacked archive, its note first: a run that is killed here must not leave a part that passes for all."""
    _note_of(folder).unlink(missing_ok=True)
    remove_tree(folder)


def _plan_item(registry: Registry, name: str, item: RegisteredItem, store: Store, dead: set[str]) -> Plan:
    unpacked, halves = unpacked_by_hand(item, name, store.by_hand)
    if unpacked is not None:
        return Plan(name, item, unpacked[0], {}, unpacked[1])
    faults = {folder: f"is not complete: {'; '.join(lacking)}" for folder, lacking in halves.items()}
    for file in registry.files_of(name):
        origin = None if store.has(file) else store.found_by_hand(file, name)
        fault = store.glance(file, origin) if origin is not None else ""
        faults |= {origin: fault} if origin is not None and fault else {}
    plans = [
        Plan(
            name,
            item,
            number,
            {file: _state(registry.files[file], store, name, dead, faults) for file in bundle},
            faults=faults,
        )
        for number, bundle in enumerate(item.bundles)
    ]
    order = {"here": 0, "by hand": 0, "online": 1, "missing": 2}
    return min(plans, key=lambda one: max(order[state] for state in one.files.values()))


def _state(
    file: RegisteredFile, store: Store, item: str, dead: set[str], faults: Mapping[Path, str]
) -> State:
    """Say how a file will be had; one that a person put in place and that is wrong is not replaced silently."""
    if store.has(file):
        return "here"
    origin = store.found_by_hand(file, item)
    if origin is not None:
        return "missing" if origin in faults else "by hand"
    for source in store.sources(file):
        local = source.path and local_path(source).is_file()
        address = address_of(source)
        if local or (address and address not in dead):
            return "online"
    return "missing"


def _dead_addresses(registry: Registry, files: Iterable[str], store: Store, offline: bool) -> set[str]:
    addresses = {
        address_of(source)
        for file in files
        if not store.has(registry.files[file])
        for source in store.sources(registry.files[file])
    } - {""}
    return addresses if offline else unreachable(addresses)
