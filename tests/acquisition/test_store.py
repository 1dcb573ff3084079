"""Getting files: mirrors, verification, recorded digests, Drive, files that a person put in place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import acquisition_miniature as miniature
import pytest
from pydantic import ValidationError

from anomdino.acquisition import sources
from anomdino.acquisition.registry import RegisteredFile, Source
from anomdino.acquisition.sources import SourceError, unreachable
from anomdino.acquisition.store import Store
from anomdino.acquisition.transfer import Patience
from anomdino.acquisition.verify import Recorded, describe_page, quick_fault
from anomdino.errors import ConfigError, DataError, DiskError

CONTENT = b"\x80\x02" + bytes(range(256)) * 400
SHA = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=2, first_wait=0.01, longest_wait=0.02, silence=5, total=20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "downloads", Recorded(tmp_path / "lock.json"), patience=QUICK)


def registered(*places: Source, **facts: object) -> RegisteredFile:
    return RegisteredFile(name="weights.pth", sources=list(places), **facts)


def from_url(*urls: str, **facts: object) -> RegisteredFile:
    return registered(*(Source(url=url) for url in urls), **facts)


def test_a_verified_file_stands_under_its_name_alone(shelf, store):
    shelf.put("/w", CONTENT)
    path = store.get(from_url(shelf.url("/w"), sha256=SHA, size=len(CONTENT)))
    assert path.read_bytes() == CONTENT
    assert sorted(one.name for one in store.folder.iterdir()) == [".verified.json", "weights.pth"]


def test_a_second_get_asks_nobody(shelf, store):
    page = shelf.put("/w", CONTENT)
    file = from_url(shelf.url("/w"), sha256=SHA)
    before = store.get(file).stat()
    assert store.get(file).stat().st_mtime_ns == before.st_mtime_ns
    assert len(page.requests) == 1


def test_wrong_bytes_are_removed_and_the_next_mirror_is_asked(shelf, store):
    shelf.put("/bad", b"\x80" + CONTENT[1:][::-1])
    shelf.put("/good", CONTENT)
    assert store.get(from_url(shelf.url("/bad"), shelf.url("/good"), sha256=SHA)).read_bytes() == CONTENT


def test_wrong_bytes_everywhere_are_reported_with_both_digests(shelf, store):
    wrong = b"\x80 wrong"
    pages = [shelf.put("/a", wrong), shelf.put("/b", wrong)]
    with pytest.raises(DataError) as caught:
        store.get(from_url(shelf.url("/a"), shelf.url("/b"), sha256=SHA))
    text = str(caught.value)
    assert SHA in text
    assert hashlib.sha256(wrong).hexdigest() in text
    assert shelf.url("/a") in text
    assert shelf.url("/b") in text
    assert "--from-dir" in text
    assert not (store.folder / "weights.pth").exists()
    assert not list(store.folder.glob("*.part*"))
    assert [len(page.requests) for page in pages] == [1, 1]  # what was not continued is wrong at the source


@pytest.mark.parametrize("kind", ["md5", "sha256", "sha256_prefix"])
def test_every_kind_of_digest_is_enforced(shelf, store, kind):
    shelf.put("/w", CONTENT)
    full = hashlib.md5(CONTENT).hexdigest() if kind == "md5" else SHA
    right = full[:8] if kind == "sha256_prefix" else full
    wrong = ("0" if right[0] != "0" else "1") + right[1:]
    with pytest.raises(DataError, match="expected"):
        store.get(from_url(shelf.url("/w"), **{kind: wrong}))
    assert store.get(from_url(shelf.url("/w"), **{kind: right})).is_file()


def test_an_existing_good_file_survives_a_failed_replacement(shelf, store):
    shelf.put("/w", CONTENT)
    path = store.get(from_url(shelf.url("/w")))
    shelf.put("/w", CONTENT[:-1] + b"!")
    with pytest.raises(DataError) as caught:
        store.get(from_url(shelf.url("/w"), sha256="0" * 64))
    assert path.read_bytes() == CONTENT
    assert "recorded in" not in str(caught.value)  # what is expected was published


def test_a_server_that_offers_another_size_is_left_before_a_byte_is_stored(shelf, store):
    shelf.put("/w", CONTENT)
    with pytest.raises(DataError, match=rf"offers {len(CONTENT):,} bytes, expected {len(CONTENT) + 1:,}"):
        store.get(from_url(shelf.url("/w"), size=len(CONTENT) + 1))


@pytest.mark.parametrize("kinds", [{}, {"url": "https://example.org/w", "path": "/share/w"}])
def test_a_source_is_of_one_kind(kinds):
    with pytest.raises(ValidationError, match="exactly one kind"):
        Source(**kinds)


def test_mirrors_that_fail_in_different_ways_are_all_named(shelf, store):
    shelf.put("/gone", CONTENT, statuses=[404])
    shelf.put("/ill", CONTENT, statuses=[500] * 9)
    shelf.put("/page", b"<html>Sign in</html>", content_type="text/html")
    with pytest.raises(DataError) as caught:
        store.get(from_url(*(shelf.url(path) for path in ("/gone", "/ill", "/page"))))
    for words in ("answered 404", "answered 500", "web page", "3 sources"):
        assert words in str(caught.value)


def test_a_continued_download_that_is_wrong_is_tried_once_more_from_the_start(shelf, store):
    file = from_url(shelf.url("/w"), sha256=SHA)
    shelf.put("/w", b"\x80" + bytes(len(CONTENT) - 1), cuts=[5000])
    impatient = Store(store.folder, store.recorded, patience=Patience(attempts=2, first_wait=9, total=1))
    with pytest.raises(DataError):
        impatient.get(file)
    page = shelf.put("/w", CONTENT)  # the same ETag and length, other bytes
    assert store.get(file).read_bytes() == CONTENT
    assert [request.get("range") for request in page.requests] == ["bytes=5000-", None]


def test_what_the_registry_does_not_know_is_recorded_once(tmp_path):
    recorded = Recorded(tmp_path / "lock.json")
    nowhere = Source(url="https://example.org/w")
    assert not recorded.record(registered(nowhere, sha256=SHA, size=5), 5, SHA)
    for facts in ({"sha256": SHA}, {"size": 5}, {}):
        recorded.path.unlink(missing_ok=True)
        assert recorded.record(registered(nowhere, **facts), 5, SHA)
        assert not recorded.record(registered(nowhere, **facts), 5, SHA)
        assert recorded.completed(registered(nowhere, **facts)).model_dump(include={"size", "sha256"}) == {
            "size": 5,
            "sha256": SHA,
        }


def test_an_unknown_digest_is_recorded_told_and_enforced(shelf, store, caplog):
    shelf.put("/w", CONTENT)
    file = from_url(shelf.url("/w"))
    store.get(file)
    assert "recorded" in caplog.text
    assert SHA in caplog.text
    assert json.loads(store.recorded.path.read_text()) == {
        "weights.pth": {"size": len(CONTENT), "sha256": SHA}
    }
    store.path(file).unlink()
    shelf.put("/w", CONTENT[:-1] + b"!")
    with pytest.raises(DataError, match=r"expected .* \(recorded in .* remove its entry there\)"):
        store.get(file)
    shelf.put("/w", CONTENT)
    assert store.get(file).is_file()


def test_a_file_that_was_changed_after_its_verification_is_noticed(shelf, store):
    shelf.put("/w", CONTENT)
    file = from_url(shelf.url("/w"), sha256=SHA)
    path = store.get(file)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert not store.has(file)
    assert "expected" in store.verify(file)
    assert store.get(file).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "facts",
    [{"md5": "0" * 32}, {"size": 7}, {"sha256_prefix": "000000"}, {"sha256": "0" * 64}, {"archive": True}],
)
def test_a_stored_file_is_checked_again_when_more_is_expected_of_it(shelf, store, facts):
    """The registry learns a digest that the file, accepted before, does not have."""
    shelf.put("/w", CONTENT)
    file = from_url(shelf.url("/w"))
    store.get(file)
    assert store.has(file)
    assert not store.has(file.model_copy(update=facts))
    assert store.has(file.model_copy(update={"md5": hashlib.md5(CONTENT).hexdigest()}))


@pytest.mark.parametrize("by", ["hand", "path"])
def test_a_copy_that_was_broken_off_is_not_continued_by_a_server(shelf, store, tmp_path, monkeypatch, by):
    """Two halves of different files, of the right size, would pass where no digest is known."""
    page = shelf.put("/w", CONTENT, cuts=[1000])
    file = from_url(shelf.url("/w"))
    store.patience = Patience(attempts=1, total=1)
    with pytest.raises(DataError):
        store.get(file)
    other = tmp_path / "other.pth"
    other.write_bytes(b"\x80" + bytes(len(CONTENT) - 1))

    def killed(origin: Path, target: Path) -> None:
        target.write_bytes(origin.read_bytes()[:5000])
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        if by == "hand":
            store.take(file, other)
        else:
            store.get(registered(Source(path=str(other))))
    assert store.get(file).read_bytes() == CONTENT
    assert "range" not in page.requests[-1]


@pytest.mark.parametrize("text", ['{"weights.pth": 5}', '{"weights.pth": {"size": "x", "sha256": ""}}', "[]"])
def test_a_damaged_file_of_records_is_named(shelf, store, text):
    shelf.put("/w", CONTENT)
    store.recorded.path.write_text(text)
    with pytest.raises(DataError, match=r"lock\.json: is damaged"):
        store.get(from_url(shelf.url("/w")))


def test_a_mirror_of_ones_own_is_asked_first(shelf, store, tmp_path):
    own = shelf.put("/team/weights.pth", CONTENT)
    public = shelf.put("/w", CONTENT)
    store.mirror = shelf.url("/team/")
    store.get(from_url(shelf.url("/w"), sha256=SHA))
    assert (len(own.requests), len(public.requests)) == (1, 0)


def test_a_local_path_is_a_source(store, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARE", str(tmp_path / "share"))
    (tmp_path / "share").mkdir()
    (tmp_path / "share/w").write_bytes(CONTENT)
    assert store.get(registered(Source(path="$SHARE/w"), sha256=SHA)).read_bytes() == CONTENT
    with pytest.raises(DataError, match="is not there"):
        store.get(RegisteredFile(name="other.pth", sources=[Source(path="/nowhere/w")]))


def test_the_hub_is_asked_at_its_endpoint(shelf, store, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", shelf.address)
    page = shelf.put("/owner/name/resolve/abc/model.pth", CONTENT)
    assert store.get(registered(Source(hub="owner/name@abc:model.pth"), sha256=SHA)).read_bytes() == CONTENT
    assert len(page.requests) == 1


@pytest.mark.parametrize("name", ["owner/na me:f", "a/b/c:f", ":f"])
def test_a_name_that_the_hub_does_not_allow_is_refused(name):
    with pytest.raises(ConfigError, match="names no file of the hub") as caught:
        sources.address_of(Source(hub=name))
    assert str(caught.value).startswith(name)


class TestByHand:
    """Files that a person downloaded pass the same checks."""

    @pytest.mark.parametrize("place", ["weights.pth", "item/weights.pth", "item/published.pth"])
    def test_places(self, store, tmp_path, place):
        path = tmp_path / "hand" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT)
        store.by_hand = [tmp_path / "hand"]
        file = registered(Source(by_hand="https://example.org/"), sha256=SHA, published="published.pth")
        assert store.get(file, "item").read_bytes() == CONTENT
        assert path.read_bytes() == CONTENT

    def test_a_wrong_file_is_refused_with_the_address_to_get_it_from(self, store, tmp_path):
        (tmp_path / "hand").mkdir()
        (tmp_path / "hand/weights.pth").write_bytes(b"<!DOCTYPE html><html>quota exceeded</html>")
        store.by_hand = [tmp_path / "hand"]
        with pytest.raises(DataError, match="download quota") as caught:
            store.get(registered(Source(by_hand="https://example.org/login")))
        assert "https://example.org/login" in str(caught.value)
        assert not (store.folder / "weights.pth").exists()

    def test_another_size_is_refused_where_no_digest_is_known(self, store, tmp_path):
        (tmp_path / "hand").mkdir()
        (tmp_path / "hand/weights.pth").write_bytes(CONTENT)
        store.by_hand = [tmp_path / "hand"]
        with pytest.raises(DataError, match=f"has {len(CONTENT):,} bytes, expected {len(CONTENT) + 1:,}"):
            store.get(registered(Source(by_hand="https://example.org/"), size=len(CONTENT) + 1))

    def test_a_named_file(self, store, tmp_path):
        (tmp_path / "x.bin").write_bytes(CONTENT)
        store.given = {"weights.pth": tmp_path / "x.bin"}
        assert (
            store.get(registered(Source(by_hand="https://example.org/"), sha256=SHA)).read_bytes() == CONTENT
        )

    def test_the_persons_file_is_never_written_to(self, shelf, store, tmp_path):
        (tmp_path / "x.bin").write_bytes(CONTENT)
        store.given = {"weights.pth": tmp_path / "x.bin"}
        file = from_url(shelf.url("/w"))
        path = store.get(file)
        path.unlink()
        shelf.put("/w", CONTENT)
        store.given = {}
        store.get(file)
        assert (tmp_path / "x.bin").read_bytes() == CONTENT
        assert (tmp_path / "x.bin").stat().st_nlink == 1

    def test_room_for_a_copy_is_looked_for_first(self, store, tmp_path, monkeypatch):
        (tmp_path / "weights.pth").write_bytes(CONTENT)
        usage = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DiskError, match=r"copying weights\.pth needs"):
            store.take(registered(Source(by_hand="https://example.org/")), tmp_path / "weights.pth")
        assert not list(store.folder.iterdir())

    def test_archives_are_linked_and_what_becomes_an_output_is_copied(self, store, tmp_path):
        for name, content, archive in (
            ("set.zip", miniature.packed("set.zip", {"a": b"1"}), True),
            ("weights.pth", CONTENT, False),
        ):
            (tmp_path / name).write_bytes(content)
            store.given = {name: tmp_path / name}
            sources = [Source(by_hand="https://example.org/")]
            file = RegisteredFile(name=name, sources=sources, archive=archive)
            store.get(file)
            assert (tmp_path / name).samefile(store.path(file)) == archive

    def test_a_link_to_an_archive_is_taken_for_what_it_leads_to(self, store, tmp_path):
        (tmp_path / "hand/deep").mkdir(parents=True)
        (tmp_path / "set.zip").write_bytes(miniature.packed("set.zip", {"a": b"1"}))
        (tmp_path / "hand/deep/set.zip").symlink_to("../../set.zip")  # leads elsewhere from another folder
        store.by_hand = [tmp_path / "hand/deep"]
        file = RegisteredFile(name="set.zip", sources=[Source(by_hand="https://example.org/")], archive=True)
        path = store.get(file)
        assert not path.is_symlink()
        assert path.samefile(tmp_path / "set.zip")


QUOTA = b"""<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>
</body></html>"""


def consent(address: str) -> bytes:
    return (
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
        "<p>Google Drive can't scan this file for viruses.</p>"
        f'<form id="download-form" action="{address}" method="get">'
        '<input type="hidden" name="id" value="ID"><input type="hidden" name="confirm" value="t">'
        '<input type="hidden" name="uuid" value="u-1"></form></body></html>'
    ).encode()


class TestDrive:
    """Pages that look like Google Drive's, from the local server."""

    @pytest.fixture(autouse=True)
    def _drive(self, shelf, monkeypatch):
        monkeypatch.setattr(sources, "DRIVE_FILE", shelf.address + "/drive?id={id}")

    def test_a_file_that_comes_at_once(self, shelf, store):
        shelf.put("/drive?id=ID", CONTENT)
        assert store.get(registered(Source(drive="ID"), sha256=SHA)).is_file()

    def test_the_consent_page_is_answered(self, shelf, store):
        shelf.put("/drive?id=ID", consent(shelf.url("/confirmed")), content_type="text/html; charset=utf-8")
        page = shelf.put("/confirmed?id=ID&confirm=t&uuid=u-1", CONTENT)
        assert store.get(registered(Source(drive="ID"), sha256=SHA)).read_bytes() == CONTENT
        assert len(page.requests) == 1

    def test_a_quota_page_is_explained_with_the_manual_steps(self, shelf, store):
        shelf.put("/drive?id=ID", QUOTA, content_type="text/html")
        with pytest.raises(DataError) as caught:
            store.get(registered(Source(drive="ID")))
        text = str(caught.value)
        assert "quota" in text
        assert "https://drive.google.com/file/d/ID/view" in text
        assert "weights.pth" in text
        assert "--from-dir" in text
        assert "make a copy" in text
        assert not (store.folder / "weights.pth").exists()

    def test_a_quota_page_after_the_consent(self, shelf, store):
        shelf.put("/drive?id=ID", consent(shelf.url("/confirmed")), content_type="text/html")
        shelf.put("/confirmed?id=ID&confirm=t&uuid=u-1", QUOTA, content_type="text/html")
        with pytest.raises(DataError, match="quota"):
            store.get(registered(Source(drive="ID")))

    def test_a_quota_page_disguised_as_data_is_found_by_its_content(self, shelf, store):
        shelf.put("/drive?id=ID", QUOTA, content_type="application/octet-stream")
        with pytest.raises(DataError, match="quota"):
            store.get(registered(Source(drive="ID")))

    @pytest.mark.parametrize(
        "form",
        ["", '<form id="download-form"></form>', '<form id="download-form" action="http://[::1"></form>'],
    )
    def test_a_consent_page_of_another_form_is_explained(self, shelf, store, form):
        page = f"<html><title>Virus scan warning</title>{form}</html>".encode()
        shelf.put("/drive?id=ID", page, content_type="text/html")
        with pytest.raises(DataError, match="asks for consent"):
            store.get(registered(Source(drive="ID")))

    def test_a_login_page(self, shelf, store):
        page = b'<html><a href="https://accounts.google.com/ServiceLogin">Sign in</a></html>'
        shelf.put("/drive?id=ID", page, content_type="text/html")
        with pytest.raises(DataError, match="not shared publicly"):
            store.get(registered(Source(drive="ID")))

    def test_the_next_source_is_asked_after_a_quota_page(self, shelf, store):
        shelf.put("/drive?id=ID", QUOTA, content_type="text/html")
        shelf.put("/w", CONTENT)
        file = registered(Source(drive="ID"), Source(url=shelf.url("/w")), sha256=SHA)
        assert store.get(file).read_bytes() == CONTENT

    def test_a_file_in_a_folder_is_found_by_its_name(self, shelf, store, monkeypatch):
        import gdown
        from gdown.download_folder import GoogleDriveFileToDownload

        listed = [
            GoogleDriveFileToDownload("X", "readme.md", ""),
            GoogleDriveFileToDownload("Y", "a/weights.pth.md5", ""),
            GoogleDriveFileToDownload("ID", "a/weights.pth", ""),
        ]
        monkeypatch.setattr(gdown, "download_folder", lambda **_: listed)
        shelf.put("/drive?id=ID", CONTENT)
        assert store.get(registered(Source(drive_folder="FOLDER"), sha256=SHA)).is_file()
        with pytest.raises(
            SourceError, match=r"no other.pth \(it lists readme.md, weights.pth, weights.pth.md5\)"
        ):
            sources.find_in_drive_folder("FOLDER", "other.pth")
        monkeypatch.setattr(gdown, "download_folder", lambda **_: None)
        with pytest.raises(SourceError, match=r"no other.pth \(it lists nothing\)"):
            sources.find_in_drive_folder("FOLDER", "other.pth")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("w.pth", miniature.checkpoint(), ""),
        ("w.pth", b"\x80\x02old", ""),
        ("w.pth", b"PK\x03\x04" + bytes(500), "a PyTorch checkpoint that is cut off"),
        ("w.pt", b"GIF89a", "no PyTorch checkpoint"),
        ("c.json", b' {"a": 1}', ""),
        ("c.json", b"a: 1", "no JSON file"),
        ("a.zip", miniature.packed("a.zip", {"a": b"1"}), ""),
        ("a.zip", miniature.packed("a.zip", {"a": b"1"})[:-30], "no zip or tar archive, or is cut off"),
        ("a.zip", b"7z\xbc\xaf\x27\x1c" + bytes(500), "a 7z archive"),
        ("a.zip", b"Rar!" + bytes(500), "a rar archive"),
    ],
)
def test_the_content_is_looked_at_where_no_digest_is_known(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    sources = [Source(by_hand="https://example.org/")]
    file = RegisteredFile(name=name, sources=sources, archive=name.endswith(".zip"))
    fault = quick_fault(tmp_path / name, file)
    assert words in fault
    assert bool(words) == bool(fault)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!doctype html><title>Google Drive - Quota exceeded", "quota"),
        (b"\xef\xbb\xbf  <HTML><title>Virus scan warning", "consent"),
        (b"<html>anything", "web page"),
        (b"<!-- saved --><HTML>anything", "web page"),
        (b"PK\x03\x04", ""),
        (b"", ""),
    ],
)
def test_pages_are_described_by_their_first_bytes(head, words):
    assert words in describe_page(head)
    assert bool(describe_page(head)) == bool(words)


def test_a_proxy_for_everything_is_asked_in_place_of_the_server(shelf, monkeypatch):
    monkeypatch.setenv("all_proxy", shelf.address)
    assert unreachable(["http://no-such-host.invalid/x"], wait=1) == set()


def test_a_server_that_no_proxy_names_is_asked_itself(shelf, monkeypatch):
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")  # no_proxy names 127.0.0.1
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert unreachable([shelf.url("/a"), "http://no-such-host.invalid/x"], wait=1) == {
        "http://no-such-host.invalid/x"
    }


@pytest.mark.parametrize("address", ["http://127.0.0.1:port/f", "http://a..b/f", "http://[::1/f"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(ConfigError, match="is no address") as caught:
        unreachable([address])
    assert str(caught.value).startswith(address)


@pytest.mark.parametrize("proxy", ["http://me:secret@127.0.0.1:80x", "me:secret@a..b:80"])
def test_a_proxy_that_is_no_address_is_named_but_not_its_password(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConfigError, match="all_proxy") as caught:
        unreachable(["http://example.org/f"])
    assert "secret" not in str(caught.value)


def test_servers_that_take_no_connection_are_found_at_once(shelf):
    dead = "http://127.0.0.1:9/x"
    started = time.monotonic()
    assert unreachable([dead, shelf.url("/a"), "http://no-such-host.invalid/x"], wait=1) == {
        dead,
        "http://no-such-host.invalid/x",
    }
    assert time.monotonic() - started < 20


KILLED = """
import sys
from pathlib import Path
from anomdino.acquisition.registry import RegisteredFile, Source
from anomdino.acquisition.store import Store
from anomdino.acquisition.verify import Recorded
url, folder = sys.argv[1:]
file = RegisteredFile(name="weights.pth", sources=[Source(url=url)])
Store(Path(folder), Recorded(Path(folder) / "lock.json")).get(file)
"""


def test_a_run_killed_in_the_middle_is_continued(shelf, store):
    page = shelf.put("/w", CONTENT, drip=(4000, 0.1))
    command = [sys.executable, "-c", KILLED, shelf.url("/w"), str(store.folder)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."})
    part = store.folder / "weights.pth.part"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size > 8000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.stat().st_size
    assert 8000 < kept < len(CONTENT)
    assert not (store.folder / "weights.pth").exists()
    page.drip = None
    assert store.get(from_url(shelf.url("/w"), sha256=SHA)).read_bytes() == CONTENT
    assert page.requests[-1]["range"] == f"bytes={kept}-"
