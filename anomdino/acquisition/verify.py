"""Whether a file is the one that was meant: size, digests, and a look at its content."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from anomdino.acquisition.archives import is_archive
from anomdino.acquisition.registry import RegisteredFile
from anomdino.errors import DataError
from anomdino.io.atomic import atomic_write_json

HEAD = 4096
PIECE = 1 << 20
_OTHER_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}


@dataclass(frozen=True)
class Recorded:
    """Digests of files whose publisher gives none, recorded on the first success.

    Args:
        path: A JSON file, ``{file name: {"size": bytes, "sha256": hex}}``, meant to be committed.
    """

    path: Path

    def read(self) -> dict[str, dict[str, object]]:
        """Give the recorded entries.

        Raises:
            DataError: The file is damaged.
        """
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                name: {"size": int(one["size"]), "sha256": str(one["sha256"])}
                for name, one in entries.items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(self.path, f"is damaged ({error})", "restore it from version control") from error

    def completed(self, file: RegisteredFile) -> RegisteredFile:
        """Give ``file`` with the recorded size and digest where the registry knows none."""
        entry = self.read().get(file.name)
        if entry is None:
            return file
        known = {key: value for key, value in entry.items() if not getattr(file, key)}
        return file.model_copy(update=known)

    def record(self, file: RegisteredFile, size: int, sha256: str) -> bool:
        """Remember size and digest of ``file`` unless the registry has both; tell whether that is new."""
        entries = self.read()
        entry = {"size": size, "sha256": sha256}
        if (file.size and file.sha256) or entries.get(file.name) == entry:
            return False
        entries[file.name] = dict(entry)
        atomic_write_json(self.path, dict(sorted(entries.items())))
        return True


@dataclass(frozen=True)
class Verdict:
    """What was found about a file.

    Args:
        size: Bytes.
        sha256: Digest; empty where a fault was found before it was computed.
        fault: Why it is not the registered file; empty when it is.
    """

    size: int
    sha256: str = ""
    fault: str = ""


def digests(path: Path) -> dict[str, str]:
    """Give the MD5 and SHA-256 of a file in hexadecimal, in one pass, read in pieces."""
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    with path.open("rb") as stream:
        while piece := stream.read(PIECE):
            for one in sums.values():
                one.update(piece)
    return {name: one.hexdigest() for name, one in sums.items()}


def inspect(path: Path, file: RegisteredFile) -> Verdict:
    """Check whether ``path`` is the registered file.

    Checked are size, MD5 and SHA-256 where they are known, and always the content: a web page, an archive
    that does not open or a checkpoint that is none are found without any digest.
    """
    size = path.stat().st_size
    fault = quick_fault(path, file)
    if fault:
        return Verdict(size, fault=fault)
    actual = digests(path)
    for kind, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected is not None and actual[kind] != expected:
            return Verdict(size, actual["sha256"], f"has {kind} {actual[kind]}, expected {expected}")
    if file.sha256_prefix and not actual["sha256"].startswith(file.sha256_prefix):
        fault = f"has sha256 {actual['sha256']}, expected one that begins with {file.sha256_prefix}"
        return Verdict(size, actual["sha256"], fault)
    return Verdict(size, actual["sha256"])


def quick_fault(path: Path, file: RegisteredFile) -> str:
    """Say what is wrong with a file as far as its size and its first bytes tell, without reading all of it."""
    size = path.stat().st_size
    if size == 0:
        return "is empty (0 bytes)"
    with path.open("rb") as stream:
        page = describe_page(stream.read(HEAD))
    if page:
        return f"is no data but {page}"
    if file.size is not None and size != file.size:
        return f"has {size:,} bytes, expected {file.size:,}"
    return _wrong_content(path, file)


def describe_page(head: bytes) -> str:
    """Say which web page the first bytes of a file are; an empty string when they are none."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    commented = start.startswith((b"<!--", b"<script", b"<meta")) and b"<html" in start
    if not commented and not start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return ""
    text = start.decode("utf-8", "replace")
    if "too many users" in text or "quota exceeded" in text or "download quota" in text:
        return "Google Drive's page that says that the download quota of this file is used up for now"
    if "virus scan warning" in text or "download-form" in text or "can't scan this file" in text:
        return "Google Drive's page that asks for consent, as it cannot scan large files for viruses"
    if "accounts.google.com" in text or "servicelogin" in text:
        return "Google's login page: the file is not shared publicly"
    return "a web page (login, consent or error page)"


def _wrong_content(path: Path, file: RegisteredFile) -> str:
    with path.open("rb") as stream:
        head = stream.read(16)
    if file.archive:
        other = next((name for magic, name in _OTHER_ARCHIVES.items() if head.startswith(magic)), "")
        cut = "is no zip or tar archive, or is cut off"
        return (
            f"is a {other} archive, which is not unpacked here: unpack it by hand"
            if other
            else ("" if is_archive(path) else cut)
        )
    suffix = Path(file.name).suffix
    if suffix in {".pth", ".pt"}:
        if head.startswith(b"PK\x03\x04"):
            return "" if zipfile.is_zipfile(path) else "is a PyTorch checkpoint that is cut off"
        return "" if head[:1] == b"\x80" else "is no PyTorch checkpoint"
    if suffix == ".json" and head.lstrip()[:1] not in {b"{", b"["}:
        return "is no JSON file"
    return ""
