"""What the stage `download` does: fill `inlier`, `outliers`, `val` and `weights` from the chosen source."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from anomdino import __version__
from anomdino.acquisition.folder import OwnFolders, import_folders, listing_digest
from anomdino.acquisition.space import disk_errors
from anomdino.acquisition.staging import staged_parts
from anomdino.config.data import DataConfig
from anomdino.io.atomic import atomic_write_json
from anomdino.io.digest import json_sha256
from anomdino.io.locking import exclusive

log = logging.getLogger(__name__)

OUTS = ("inlier", "outliers", "val", "weights")

Counts = dict[str, int]


def fill(data: DataConfig, root: Path) -> Counts:
    """Fill the four folders below ``root``, all or none; a second run with the same request touches nothing.

    Args:
        data: The checked ``data`` block.
        root: The project's ``data`` folder.

    Returns:
        Number of files by part.

    Raises:
        AnomdinoError: The source cannot be had; what stood in the folders before is untouched.
        DiskError: The disk is full or not writable, likewise.
    """
    with disk_errors(root), exclusive(root / ".download.lock"):
        own = OwnFolders.of(**data.folder.model_dump()) if data.source == "folder" else None
        request = _fingerprint(data, listing_digest(own) if own else "")
        state = root / ".download.json"
        done = _finished(state, request, root)
        if done is not None:
            log.info("data are in place already; nothing was touched")
            return done
        with staged_parts(root, OUTS) as out:
            counts = _filler(data, own)(out)
        atomic_write_json(state, {"request": request, "counts": counts, "outs": _sizes(root)})
        return counts


def _filler(data: DataConfig, own: OwnFolders | None) -> Callable[[Path], Counts]:
    if own is not None:
        return lambda out: import_folders(own, out)
    if data.source == "registry":
        from anomdino.acquisition.acquire import acquire

        return lambda out: acquire(data.registry, out)
    return lambda out: _synthetic(data, out)


def _synthetic(data: DataConfig, out: Path) -> Counts:
    from anomdino.synthetic import write_synthetic

    return dict(write_synthetic(data.synthetic, out))


def _fingerprint(data: DataConfig, listing: str) -> str:
    own = data.registry.file if data.source == "registry" else ""
    file = Path(own).expanduser()
    registered = file.read_text(encoding="utf-8", errors="replace") if own and file.is_file() else ""
    content = [
        __version__,
        data.source,
        getattr(data, data.source).model_dump(mode="json"),
        listing,
        registered,
    ]
    return json_sha256(content)


def _finished(state: Path, request: str, root: Path) -> Counts | None:
    try:
        known = json.loads(state.read_text(encoding="utf-8"))
        good = known["request"] == request and known["outs"] == _sizes(root)
        return {str(key): int(value) for key, value in known["counts"].items()} if good else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _sizes(root: Path) -> dict[str, list[int]]:
    sizes = {}
    for name in OUTS:
        files = [path.stat().st_size for path in (root / name).rglob("*") if path.is_file()]
        sizes[name] = [int((root / name).is_dir()), len(files), sum(files)]
    return sizes
