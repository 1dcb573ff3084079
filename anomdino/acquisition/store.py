"""The folder of downloaded files: each is there whole and verified, or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anomdino.acquisition.registry import RegisteredFile, Source
from anomdino.acquisition.sources import fetch
from anomdino.acquisition.space import in_words, require_space
from anomdino.acquisition.transfer import Patience, SourceError, drop_part, part_of
from anomdino.acquisition.verify import Recorded, Verdict, inspect, quick_fault
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json

log = logging.getLogger(__name__)

RECORDED = Path("downloads.lock.json")
_CHECKED = {"size", "sha256", "sha256_prefix", "md5", "archive"}
QUOTA_HELP = (
    "; while Google refuses it: log in, make a copy of the file in your own Drive and download that, "
    "or come back in a day (a begun download is continued)"
)


@dataclass
class Store:
    """Downloaded files, by their registered name.

    Args:
        folder: Where they are kept.
        recorded: Digests recorded on the first success.
        by_hand: Folders in which a person may have put files.
        given: Files that a person named one by one, by registered name.
        mirror: Address of an own copy; ``<mirror>/<file name>`` is asked before all other sources.
        patience: Limits of time for one file.
        records: What is found good is written down, so that it is not read again; for the run that holds the lock alone.
    """

    folder: Path
    recorded: Recorded = field(default_factory=lambda: Recorded(RECORDED))
    by_hand: Sequence[Path] = ()
    given: dict[str, Path] = field(default_factory=dict)
    mirror: str = ""
    patience: Patience = field(default_factory=Patience)
    records: bool = True

    def path(self, file: RegisteredFile) -> Path:
        """Give the final path of a file."""
        return self.folder / file.name

    def begun(self, file: RegisteredFile) -> int:
        """Give the bytes of a file that an interrupted download left."""
        part = part_of(self.path(file))
        return part.stat().st_size if part.is_file() else 0

    def has(self, file: RegisteredFile) -> bool:
        """Whether the file is there, as it was when it was verified against what is expected now."""
        path = self.path(file)
        if not path.is_file():
            return False
        return self._verified().get(file.name) == self._stamp(file) or self.verify(file) == ""

    def verify(self, file: RegisteredFile) -> str:
        """Check a stored file in full and say what is wrong with it; an empty string when it is good."""
        path = self.path(file)
        if not path.is_file():
            return "is not there"
        verdict = inspect(path, self.recorded.completed(file))
        if not verdict.fault:
            self._accept(file, verdict)
        return self._explained(file, verdict.fault)

    def found_by_hand(self, file: RegisteredFile, folder: str = "") -> Path | None:
        """Give the path where a person put a file: as named, or in a folder or its sub-folder ``folder``."""
        places = [self.given[file.name]] if file.name in self.given else []
        names = (
            file.name,
            f"{folder}/{file.name}",
            f"{folder}/{file.published}" if file.published else file.name,
        )
        places += [root / name for root in self.by_hand for name in names]
        return next((path for path in places if path.is_file()), None)

    def glance(self, file: RegisteredFile, origin: Path) -> str:
        """Say what is wrong with a file that a person put in place, without reading all of it; "" when nothing is."""
        return self._explained(file, quick_fault(origin, self.recorded.completed(file)))

    def sources(self, file: RegisteredFile) -> list[Source]:
        """Give the sources of a file in the order in which they are asked."""
        own = [Source(url=f"{self.mirror.rstrip('/')}/{file.name}")] if self.mirror else []
        return [*own, *file.sources]

    def take(self, file: RegisteredFile, origin: Path) -> Path:
        """Take over a file that a person downloaded, after the same checks as for a download.

        An archive is linked where the file system allows it, else copied. Other files, which go on into the outputs
        as they are, are copied: DVC makes what it links read-only. The origin is not changed.

        Raises:
            DataError: It is not the registered file; the message has what was expected and found.
            DiskError: There is no room.
        """
        verdict = inspect(origin, self.recorded.completed(file))
        if verdict.fault:
            fault = self._explained(file, verdict.fault)
            raise DataError(origin, fault, f"get {file.name} again from {_pages(file)}")
        target = self.path(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(target)
        drop_part(target)  # with its notes: a server must not continue what was copied from elsewhere
        if not (file.archive and _linked(origin, part)):
            require_space(self.folder, verdict.size, f"copying {origin.name}")
            shutil.copyfile(origin, part)
        self._finish(file, part, verdict)
        return target

    def get(self, file: RegisteredFile, folder: str = "") -> Path:
        """Give the path of a file, which is fetched unless it is there.

        Sources are asked in their order; a file that is wrong is removed and the next source is asked.

        Args:
            file: The registered file.
            folder: Name of a sub-folder in which a person may have put it.

        Raises:
            DataError: No source gave the file; the message has each source with its reason, and the manual
                steps.
            DiskError: There is no room.
        """
        if self.has(file):
            return self.path(file)
        origin = self.found_by_hand(file, folder)
        if origin is not None:
            return self.take(file, origin)
        reasons = []
        for source in self.sources(file):
            try:
                return self._get_from(source, file)
            except SourceError as error:
                log.info("%s: %s %s", file.name, source.page, error)
                reasons.append(f"{source.page} {error}")
        listed = "\n  ".join(reasons)
        raise DataError(
            file.name,
            f"could not be had from any of its {len(reasons)} sources:\n  {listed}",
            self.manual(file) + (QUOTA_HELP if "quota" in listed else ""),
        )

    def manual(self, file: RegisteredFile) -> str:
        """Say how a person gets the file by hand and where to put it."""
        return (
            f"open {_pages(file)} in a browser, save the file as {file.name} in a folder, "
            f"set data.registry.from_dir to that folder (or `anomdino data get ... --from-dir FOLDER`)"
        )

    def _explained(self, file: RegisteredFile, fault: str) -> str:
        """Add where an expectation comes from, if it was recorded and not published."""
        if ", expected " not in fault or file.name not in self.recorded.read():
            return fault
        if (file.size and "bytes" in fault) or (file.sha256 and "sha256" in fault) or "md5" in fault:
            return fault
        return (
            f"{fault} (recorded in {self.recorded.path} at the first download; "
            f"if the publisher has replaced the file, remove its entry there)"
        )

    def _get_from(self, source: Source, file: RegisteredFile) -> Path:
        target = self.path(file)
        part = part_of(target)
        for fresh in (False, True):
            resumed = fetch(source, self.recorded.completed(file), target, self.patience)
            verdict = inspect(part, self.recorded.completed(file))
            if not verdict.fault:
                self._finish(file, part, verdict)
                return target
            drop_part(target)
            if fresh or not resumed:
                raise SourceError(f"gave a file that {self._explained(file, verdict.fault)}")
            log.info("%s: the continued download %s; starting anew", file.name, verdict.fault)
        raise AssertionError("unreachable")

    def _finish(self, file: RegisteredFile, part: Path, verdict: Verdict) -> None:
        os.replace(part, self.path(file))
        drop_part(self.path(file))
        self._accept(file, verdict)
        log.info("%s: %s, verified", file.name, in_words(verdict.size))

    @property
    def lock(self) -> Path:
        """What a run holds that changes files or records."""
        return self.folder / ".lock"

    def _accept(self, file: RegisteredFile, verdict: Verdict) -> None:
        if not self.records:
            return
        if self.recorded.record(file, verdict.size, verdict.sha256):
            log.warning(
                "%s: recorded sha256 %s in %s, as its publisher gives none; commit that file",
                file.name,
                verdict.sha256,
                self.recorded.path,
            )
        entries = self._verified()
        entries[file.name] = self._stamp(file)
        atomic_write_json(self._stamps, entries)

    def _stamp(self, file: RegisteredFile) -> dict[str, object]:
        """Give the size and time of a stored file, and what it is checked against."""
        stat = self.path(file).stat()
        expected = self.recorded.completed(file).model_dump(include=_CHECKED, exclude_none=True)
        return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "expected": expected}

    def _verified(self) -> dict[str, dict[str, object]]:
        try:
            return dict(json.loads(self._stamps.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    @property
    def _stamps(self) -> Path:
        return self.folder / ".verified.json"


def _linked(origin: Path, target: Path) -> bool:
    try:
        os.link(origin.resolve(), target)  # where the origin is a symbolic link, that alone would be linked
    except OSError:
        return False
    return True


def _pages(file: RegisteredFile) -> str:
    return " or ".join(dict.fromkeys(source.page for source in file.sources))
