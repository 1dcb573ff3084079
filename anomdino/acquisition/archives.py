"""Unpacking archives that nobody vouches for: every member is checked before anything is written."""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Self

from anomdino.acquisition.space import require_space
from anomdino.errors import DataError
from anomdino.progress import track

PIECE = 1 << 20
LONGEST_NAME = 255
LONGEST_PATH = 1024
SMALL = 64 << 20
LONGEST_HEADER = 1 << 20
_EXTENDED = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}

Chosen = Callable[[str], bool]


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold at most.

    Args:
        members: Number of members.
        unpacked: Bytes of all members together.
        ratio: Unpacked bytes for one packed byte, over the whole archive; small archives are exempt.
    """

    members: int = 400_000
    unpacked: int = 120_000_000_000
    ratio: float = 100.0


@dataclass(frozen=True)
class Member:
    """A regular file of an archive.

    Args:
        name: Path inside the archive, with ``/``.
        size: Bytes as declared.
    """

    name: str
    size: int


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, by its content."""
    if not path.is_file() or is_zip(path):
        return path.is_file()
    try:
        tarfile.open(path, tarinfo=_BoundedHeader).close()
    except _HeaderTooLong:
        return True
    except _DAMAGED:
        return False
    return True


def is_zip(path: Path) -> bool:
    """Whether a file is a zip, by its content; a tar is none, though a zip that is its last member looks like one."""
    with path.open("rb") as stream:
        stream.seek(257)
        return stream.read(5) != b"ustar" and zipfile.is_zipfile(path)


def list_members(path: Path, limits: ArchiveLimits | None = None) -> list[Member]:
    """Check every member of an archive and list its regular files.

    Refused are absolute names and names with ``..``, backslashes, drive letters, control characters or
    over-long parts; symbolic and hard links, devices, pipes and sparse files; encrypted members; names that
    are the same file on a system that ignores case or Unicode form; and archives beyond ``limits``.

    Args:
        path: A zip or a tar (plain, gz, bz2, xz).
        limits: Largest count, size and ratio.

    Raises:
        DataError: The archive is damaged or any member is refused. Nothing was written.
    """
    with _opened(path) as archive:
        return _checked(path, _members(archive), limits or ArchiveLimits())


def unpack(
    path: Path, target: Path, limits: ArchiveLimits | None = None, chosen: Chosen | None = None
) -> list[Path]:
    """Unpack an archive into an existing empty folder after checking all of it (see :func:`list_members`).

    Files get default permissions and times; checksums of the archive are verified while reading.

    Args:
        path: The archive.
        target: The folder to fill, usually a staging folder.
        limits: Largest count, size and ratio.
        chosen: Tells by the member's name whether it is wanted; ``None`` takes all.

    Returns:
        The files written.

    Raises:
        DataError: The archive is damaged, or a member is refused (then nothing was written).
        DiskError: There is too little space.
    """
    with _opened(path) as archive:
        members = _checked(path, _members(archive), limits or ArchiveLimits())
        wanted = {member.name: member for member in members if chosen is None or chosen(member.name)}
        require_space(target, sum(member.size for member in wanted.values()), f"unpacking {path.name}")
        written = []
        for name, stream in track(_contents(archive, wanted), f"unpack {path.name}", len(wanted), "file"):
            file = target.joinpath(*PurePosixPath(name).parts)
            _write(path, stream, file, wanted[name])
            written.append(file)
        return written


Archive = zipfile.ZipFile | tarfile.TarFile
# zipfile and tarfile let all of these out where headers are damaged, or made to harm
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RecursionError,
    LookupError,
    OverflowError,
    ValueError,
)


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    try:
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                yield archive
        else:
            with tarfile.open(path, "r:*", tarinfo=_BoundedHeader) as tar:
                yield tar
    except _HeaderTooLong as error:
        raise _refused(path, "a member has an over-long extended header") from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno in {None, errno.EINVAL}:  # EINVAL: a header points to before the file
            raise _damaged(path, error) from error
        raise


class _HeaderTooLong(Exception):
    """An extended header that would be read into memory as a whole is longer than any name needs."""


class _BoundedHeader(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > LONGEST_HEADER:
            raise _HeaderTooLong
        return header


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(path, f"is a damaged archive ({error})", "remove it and get it again")


def _members(archive: Archive) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and what is wrong with the member's kind ('' for a file, 'folder' for a folder)."""
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            yield entry.orig_filename, entry.file_size, _zip_kind(entry)
    else:
        for member in archive:
            yield member.name, member.size, _tar_kind(member)


def _zip_kind(entry: zipfile.ZipInfo) -> str:
    mode = entry.external_attr >> 16
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if stat.S_ISLNK(mode):
        return "is a symbolic link"
    if mode and stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "is a device or pipe"
    return "folder" if entry.is_dir() else ""


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"is a {'symbolic' if member.issym() else 'hard'} link to {member.linkname!r}"
    if member.isdir():
        return "folder"
    if member.issparse():
        return "is a sparse file"
    if not member.isfile():
        return "is a device or pipe"
    try:
        tarfile.data_filter(member, "/nowhere")
    except tarfile.FilterError as error:
        return f"is refused by tar's data filter ({error})"
    return ""


def _checked(path: Path, found: Iterator[tuple[str, int, str]], limits: ArchiveLimits) -> list[Member]:
    files: list[Member] = []
    kinds: dict[str, bool] = {}
    total = count = 0
    packed = path.stat().st_size
    for name, size, kind in found:
        count, total = count + 1, total + size
        fault = _name_fault(name) or (kind if kind != "folder" else "")
        fault = fault or ("has a negative size" if size < 0 else "")  # it would make room for other members
        if fault:
            raise _refused(path, f"member {name!r} {fault}")
        if count > limits.members:
            raise _refused(path, f"it has more than {limits.members:,} members")
        if total > limits.unpacked:
            raise _refused(path, f"it unpacks to more than {limits.unpacked:,} bytes")
        if total > SMALL and total > limits.ratio * packed:
            raise _refused(path, f"it unpacks to more than {limits.ratio:g} times its {packed:,} bytes")
        _note_path(path, name, kind == "folder", kinds)
        if kind != "folder":
            files.append(Member(name, size))
    if not files:
        raise _refused(path, "it holds no file")
    return files


def _name_fault(name: str) -> str:
    parts = name.rstrip("/").split("/")
    faults = {
        "is an absolute path": name.startswith("/") or name[1:2] == ":",
        "has a backslash in its name": "\\" in name,
        "has control characters in its name": any(unicodedata.category(letter) == "Cc" for letter in name),
        "leaves the folder ('..')": ".." in parts,
        "has an empty part in its name": "" in parts,
        "has an over-long name": len(name.encode("utf-8", "replace")) > LONGEST_PATH
        or any(len(part.encode("utf-8", "replace")) > LONGEST_NAME for part in parts),
    }
    return next((fault for fault, present in faults.items() if present), "")


def _note_path(path: Path, name: str, folder: bool, kinds: dict[str, bool]) -> None:
    """Remember the path and its parents, and refuse one that collides with an earlier one."""
    parts = PurePosixPath(name).parts
    if not parts and not folder:
        raise _refused(path, f"member {name!r} is a file with the name of the folder itself")
    for depth in range(1, len(parts) + 1):
        whole = "/".join(parts[:depth])
        key = unicodedata.normalize("NFC", whole).casefold()
        is_folder = folder or depth < len(parts)
        known = kinds.get(key)
        if known is not None and not (known and is_folder):
            raise _refused(path, f"member {name!r} collides with another (same name but for case or form)")
        kinds[key] = is_folder


def _contents(archive: Archive, wanted: dict[str, Member]) -> Iterator[tuple[str, IO[bytes]]]:
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist():
            if entry.orig_filename in wanted:
                with archive.open(entry) as stream:
                    yield entry.orig_filename, stream
    else:
        for member in archive:
            stream_or_none = archive.extractfile(member) if member.name in wanted else None
            if stream_or_none is not None:
                with stream_or_none:
                    yield member.name, stream_or_none


def _write(archive: Path, stream: IO[bytes], file: Path, member: Member) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with file.open("xb") as out:
        while piece := stream.read(PIECE):
            written += out.write(piece)
    if written != member.size:
        raise _refused(archive, f"member {member.name!r} has {written:,} bytes, declares {member.size:,}")


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        path, f"the archive is refused: {why}", "get it from another source, or unpack it by hand"
    )
