"""Archives with every attack: refused before anything is written."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomdino.acquisition.archives import ArchiveLimits, is_archive, list_members, unpack
from anomdino.errors import DataError, DiskError


def make_zip(path: Path, members: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def special_tar(path: Path, kind: bytes, name: str = "bad", target: str = "/etc/passwd") -> Path:
    with tarfile.open(path, "w") as archive:
        good = tarfile.TarInfo("good.txt")
        good.size = 2
        archive.addfile(good, io.BytesIO(b"ok"))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        archive.addfile(entry)
    return path


def refused(path: Path, tmp_path: Path, match: str, limits: ArchiveLimits | None = None) -> None:
    target = tmp_path / "out"
    target.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=match):
        unpack(path, target, limits)
    assert sorted(tmp_path.rglob("*")) == before


GOOD = {"a/b.txt": b"hello", "a/c/d.bin": bytes(range(256)) * 100, "ünï/名.txt": b"x", "empty": b""}


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_good_archives_unpack_to_the_same_bytes(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        make_zip(path, GOOD)
    else:
        make_tar(path, GOOD, "w:" + suffix.removeprefix("tar").removeprefix("."))
    target = tmp_path / "out"
    target.mkdir()
    written = unpack(path, target)
    assert {p.relative_to(target).as_posix(): p.read_bytes() for p in written} == GOOD
    assert is_archive(path)


def test_chosen_members_alone_are_written(tmp_path):
    path = make_zip(tmp_path / "a.zip", GOOD)
    target = tmp_path / "out"
    target.mkdir()
    assert unpack(path, target, chosen=lambda name: name.endswith(".txt") and name.startswith("a/")) == [
        target / "a" / "b.txt"
    ]
    assert [p.name for p in target.rglob("*") if p.is_file()] == ["b.txt"]


NAMES = {
    "../evil": "leaves the folder",
    "a/../../evil": "leaves the folder",
    "/etc/evil": "absolute",
    "C:/evil": "absolute",
    "a\\..\\evil": "backslash",
    "a//b": "empty part",
    "a\nb": "control characters",
    "x" * 300: "over-long",
    "/".join(["d" * 100] * 12): "over-long",
    "/".join(["\u540d" * 80] * 5): "over-long",  # 404 letters, 1204 bytes
}


@pytest.mark.parametrize(("name", "match"), NAMES.items(), ids=range(len(NAMES)))
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_leave_the_folder_or_are_no_names(tmp_path, kind, name, match):
    members = {"good.txt": b"ok", name: b"evil"}
    path = (
        make_zip(tmp_path / "a.zip", members) if kind == "zip" else make_tar(tmp_path / "a.tar", members, "w")
    )
    refused(path, tmp_path, match)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
    ],
)
def test_links_and_devices_in_tar(tmp_path, kind, match):
    refused(special_tar(tmp_path / "a.tar", kind), tmp_path, match)


def test_a_link_inside_the_folder_is_refused_as_well(tmp_path):
    refused(special_tar(tmp_path / "a.tar", tarfile.SYMTYPE, target="good.txt"), tmp_path, "symbolic link")


def test_symlink_in_zip(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    refused(path, tmp_path, "symbolic link")


def test_device_in_zip(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("dev")
        entry.external_attr = 0o020666 << 16
        archive.writestr(entry, b"")
    refused(path, tmp_path, "device")


def test_encrypted_zip(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": b"secret"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    refused(path, tmp_path, "encrypted")


@pytest.mark.parametrize(
    "members",
    [
        {"a.txt": b"1", "A.TXT": b"2"},
        {"d/a": b"1", "D/b": b"2", "D": b"3"},
        {"\u00e9.txt": b"1", "e\u0301.txt": b"2"},
        {"a": b"1", "a/b": b"2"},
        {"stra\u00dfe": b"1", "STRASSE": b"2"},
    ],
)
def test_names_that_collide_where_case_or_form_do_not_count(tmp_path, members):
    refused(make_zip(tmp_path / "a.zip", members), tmp_path, "collides")


def test_the_same_name_twice(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"one", b"two"):
            entry = tarfile.TarInfo("a")
            entry.size = 3
            archive.addfile(entry, io.BytesIO(content))
    refused(path, tmp_path, "collides")


def test_what_reaches_a_limit_and_not_beyond_is_unpacked(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": bytes(1500), "b": bytes(1500)})
    assert len(list_members(path, ArchiveLimits(members=2, unpacked=3000))) == 2


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_members(tmp_path, kind):
    members = {f"{number}": b"" for number in range(20)}
    path = make_zip(tmp_path / "a.zip", members) if kind == "zip" else make_tar(tmp_path / "a.tgz", members)
    refused(path, tmp_path, "more than 10 members", ArchiveLimits(members=10))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_too_many_bytes(tmp_path, kind):
    members = {"a": bytes(2000), "b": bytes(2000)}
    path = make_zip(tmp_path / "a.zip", members) if kind == "zip" else make_tar(tmp_path / "a.tgz", members)
    refused(path, tmp_path, "unpacks to more than 3,000 bytes", ArchiveLimits(unpacked=3000))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_seen_by_its_ratio(tmp_path, kind):
    bomb = bytes(80 << 20)
    path = (
        make_zip(tmp_path / "a.zip", {"bomb": bomb})
        if kind == "zip"
        else make_tar(tmp_path / "a.tgz", {"b": bomb})
    )
    refused(path, tmp_path, "times its")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory(tmp_path, kind):
    """A few packed kilobytes announce an extended header of 64 MB, which tarfile would read at once."""
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = kind, 64 << 20
    with gzip.open(tmp_path / "a.tgz", "wb") as stream:
        stream.write(header.tobuf() + bytes(64 << 20))
    tracemalloc.start()
    refused(tmp_path / "a.tgz", tmp_path, "over-long extended header")
    assert is_archive(tmp_path / "a.tgz")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def with_size(entry: tarfile.TarInfo, size: int) -> bytes:
    """Give a tar header with any size, negative ones too, in base 256."""
    header = bytearray(entry.tobuf())
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.REGTYPE])
def test_a_negative_size_makes_no_room_for_a_bomb(tmp_path, kind):
    first = tarfile.TarInfo("first")
    first.type = kind
    bomb = tarfile.TarInfo("bomb")
    bomb.size = 4096
    with gzip.open(tmp_path / "a.tgz", "wb") as stream:
        stream.write(with_size(first, -(1 << 40)) + bomb.tobuf() + bytes(bomb.size))
    refused(tmp_path / "a.tgz", tmp_path, "negative size", ArchiveLimits(unpacked=3000))


def test_a_tar_with_a_zip_at_its_end_is_a_tar(tmp_path):
    """The end of a zip, by which one is known, lies at the end of this file too."""
    inner = make_zip(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
    path = make_tar(tmp_path / "a.tar", {"inner.zip": inner}, "w")
    assert is_archive(path)
    assert [one.name for one in list_members(path)] == ["inner.zip"]


def test_a_long_name_in_an_extended_header_is_read(tmp_path):
    name = "/".join(["ö" * 60] * 4)
    path = make_tar(tmp_path / "a.tgz", {name: b"x"})
    assert [one.name for one in list_members(path)] == [name]


def test_a_zip_member_larger_than_declared_is_not_unpacked(tmp_path):
    """The declared size in the central directory is made smaller than what the data inflate to."""
    path = make_zip(tmp_path / "a.zip", {"a": b"y" * 5000})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(DataError):
        unpack(path, target)
    assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) <= 10


def test_a_zip_member_smaller_than_declared_is_refused(tmp_path):
    """Its checksum is right: the size that the list of members declares is not."""
    path = make_zip(tmp_path / "a.zip", {"a": b"y" * 5000})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 6000)
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="has 5,000 bytes, declares 6,000"):
        unpack(path, tmp_path / "out")


def test_a_zip_whose_members_would_lie_before_its_beginning(tmp_path):
    """The list of members is said to lie later than it does: all places shift to before the file."""
    path = make_zip(tmp_path / "a.zip", {"a": b"x" * 50})
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x05\x06") + 16
    content[place : place + 4] = struct.pack("<I", struct.unpack("<I", content[place : place + 4])[0] + 20)
    path.write_bytes(content)
    refused(path, tmp_path, "damaged archive")


def test_damaged_content_is_found_by_the_archives_own_checksum(tmp_path):
    payload = os.urandom(50_000)
    path = make_zip(tmp_path / "a.zip", {"a": payload})
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0xFF
    path.write_bytes(content)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(DataError, match="damaged archive"):
        unpack(path, target)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2", "tar"])
def test_a_truncated_archive(tmp_path, kind):
    members = {f"f{number}": os.urandom(5000) for number in range(10)}
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(path, members)
    else:
        make_tar(path, members, "w:" + kind.removeprefix("tar").removeprefix("."))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(DataError, match=r"damaged archive|refused"):
        unpack(path, target)


@pytest.mark.parametrize("length", [5, 12, 40])
def test_a_compressed_tar_that_ends_in_its_first_header_is_no_archive(tmp_path, length):
    path = make_tar(tmp_path / "a.tgz", GOOD)
    path.write_bytes(path.read_bytes()[:length])
    assert not is_archive(path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_chain_of_extended_headers_is_refused(tmp_path, kind):
    """tarfile calls itself for every further header, until Python's stack is used up."""
    header = tarfile.TarInfo("././@PaxHeader")
    body = b"11 path=ab\n"
    header.type, header.size = kind, len(body)
    (tmp_path / "a.tar").write_bytes((header.tobuf() + body.ljust(512, b"\0")) * 1500 + bytes(1024))
    assert not is_archive(tmp_path / "a.tar")
    refused(tmp_path / "a.tar", tmp_path, "damaged archive")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_is_called_like_the_folder_itself(tmp_path, kind):
    members = {"good.txt": b"ok", ".": b"evil"}
    path = (
        make_zip(tmp_path / "a.zip", members) if kind == "zip" else make_tar(tmp_path / "a.tar", members, "w")
    )
    refused(path, tmp_path, "folder itself")


def test_a_zip_member_without_a_name(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"x": b"1"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", 28), (b"PK\x03\x04", 26)):
        content[content.index(signature) + offset] = 0
    path.write_bytes(content)
    refused(path, tmp_path, "damaged archive")


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(["zip", "tar"]),
    places=st.lists(st.tuples(st.integers(0, 1535), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_whatever_is_damaged_is_said_to_be(tmp_path_factory, kind, places):
    """Bytes of headers are changed: an archive is unpacked, or refused in words, and nothing else."""
    root = tmp_path_factory.mktemp("damaged")
    members = {"d/" + "ü" * 60: b"abc" * 40, "e.txt": b"x"}
    path = make_zip(root / "a", members) if kind == "zip" else make_tar(root / "a", members, "w")
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[-1 - place % len(content) if kind == "zip" else place] = value
    path.write_bytes(content)
    (root / "out").mkdir()
    is_archive(path)
    with suppress(DataError):
        unpack(path, root / "out")


def test_no_archive_at_all(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"<html>quota</html>")
    with pytest.raises(DataError, match="damaged archive"):
        list_members(path)


def test_an_archive_without_files(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("folder")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    refused(path, tmp_path, "holds no file")


def test_space_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    path = make_zip(tmp_path / "a.zip", {"a": bytes(1_000_000)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(DiskError, match="1 MB"):
        unpack(path, target)
    assert not list(target.iterdir())


def test_special_permissions_are_not_taken_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        entry = tarfile.TarInfo("script")
        entry.size, entry.mode = 2, 0o4777
        archive.addfile(entry, io.BytesIO(b"ok"))
    target = tmp_path / "out"
    target.mkdir()
    (file,) = unpack(path, target)
    assert file.stat().st_mode & 0o7111 == 0


part = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\:"), min_size=1, max_size=20
)
name = st.lists(part.filter(lambda one: one not in {".", ".."}), min_size=1, max_size=4).map("/".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(name, min_size=1, max_size=6, unique=True), content=st.binary(max_size=200))
def test_whatever_unpacks_stays_inside_and_keeps_its_bytes(tmp_path_factory, names, content):
    root = tmp_path_factory.mktemp("archive")
    path = make_tar(root / "a.tar", dict.fromkeys(names, content), "w")
    target = root / "deep" / "out"
    target.mkdir(parents=True)
    folded = {unicodedata.normalize("NFC", one).casefold() for one in names}
    parents = {"/".join(one.split("/")[:depth]) for one in folded for depth in range(1, one.count("/") + 1)}
    if len(folded) < len(names) or parents & folded:
        with pytest.raises(DataError, match="collides"):
            unpack(path, target)
        return
    written = unpack(path, target)
    assert len(written) == len(names)
    for file in written:
        assert file.resolve().is_relative_to(target.resolve())
        assert file.read_bytes() == content
