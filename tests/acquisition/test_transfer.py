"""Transfers against a server that cuts, lies, drips, redirects and forgets."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from anomdino.acquisition import transfer as module
from anomdino.acquisition.transfer import PageError, Patience, SourceError, part_of, transfer
from anomdino.errors import DiskError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
QUICK = Patience(attempts=3, first_wait=0.01, longest_wait=0.05, silence=5, total=30)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "in" / "file.bin"


def notes_of(target: Path) -> dict[str, str]:
    return json.loads(part_of(target).with_name(f"{target.name}.part.json").read_text())


def test_a_file_arrives_as_part_and_never_under_its_final_name(shelf, target):
    shelf.put("/f", CONTENT)
    resumed = transfer(shelf.url("/f"), target, patience=QUICK)
    assert not resumed
    assert part_of(target).read_bytes() == CONTENT
    assert not target.exists()


def test_a_cut_connection_is_continued_where_it_ended(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[100_000, 50_000])
    assert transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert [request.get("range") for request in page.requests] == [None, "bytes=100000-", "bytes=150000-"]
    assert page.requests[1]["if-range"] == '"one"'


def test_a_later_run_continues_the_part(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[200_000])
    with pytest.raises(SourceError, match="connection broke"):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    assert part_of(target).stat().st_size == 200_000
    assert transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert page.requests[-1]["range"] == "bytes=200000-"


def test_a_server_that_ignores_range_makes_it_start_anew(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[100_000], ranges=False)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert len(page.requests) == 2


def test_a_changed_file_is_not_glued_to_the_old_part(shelf, target):
    shelf.put("/f", CONTENT, cuts=[100_000])
    with pytest.raises(SourceError):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    changed = CONTENT[::-1]
    shelf.put("/f", changed, etag='"two"')
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == changed


def test_a_server_that_answers_206_for_another_file_is_caught_by_its_total(shelf, target):
    shelf.put("/f", CONTENT, cuts=[100_000])
    with pytest.raises(SourceError):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    longer = b"x" + CONTENT
    shelf.put("/f", longer)  # the same ETag: a server that lies
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == longer


def test_a_server_that_continues_another_file_in_spite_of_if_range_is_caught_by_its_etag(shelf, target):
    shelf.put("/f", CONTENT, cuts=[100_000])
    with pytest.raises(SourceError):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    changed = CONTENT[::-1]
    shelf.put("/f", changed, etag='"two"', heeds_if_range=False)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == changed


def test_a_piece_from_another_place_is_not_glued_on(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[100_000], shift=10)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert [request.get("range") for request in page.requests] == [None, "bytes=100000-", None]


def test_without_validators_nothing_is_continued(shelf, target):
    page = shelf.put("/f", CONTENT, etag="", cuts=[100_000])
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert "range" not in page.requests[1]


def test_the_date_serves_where_the_etag_is_weak(shelf, target):
    page = shelf.put(
        "/f", CONTENT, etag='W/"weak"', last_modified="Mon, 01 Jan 2024 00:00:00 GMT", cuts=[9_000]
    )
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert page.requests[1]["if-range"] == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_a_complete_part_is_recognised_by_416(shelf, target):
    page = shelf.put("/f", CONTENT)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert page.requests[-1]["range"] == f"bytes={len(CONTENT)}-"


def test_a_part_longer_than_the_file_is_dropped_at_416(shelf, target):
    shelf.put("/f", CONTENT)
    transfer(shelf.url("/f"), target, patience=QUICK)
    shelf.put("/f", CONTENT[:1000])
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT[:1000]


def test_a_part_of_another_address_is_not_continued(shelf, target):
    shelf.put("/f", CONTENT, cuts=[100_000])
    with pytest.raises(SourceError):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    page = shelf.put("/mirror", CONTENT)
    transfer(shelf.url("/mirror"), target, patience=QUICK)
    assert "range" not in page.requests[0]
    assert part_of(target).read_bytes() == CONTENT


def test_addresses_that_change_their_text_are_continued_by_identity(shelf, target):
    shelf.put("/f?token=1", CONTENT, cuts=[100_000])
    limits = Patience(attempts=3, first_wait=9, total=1)
    with pytest.raises(SourceError):
        transfer(shelf.url("/f?token=1"), target, patience=limits, identity="drive:1")
    page = shelf.put("/f?token=2", CONTENT)
    assert transfer(shelf.url("/f?token=2"), target, patience=QUICK, identity="drive:1")
    assert page.requests[0]["range"] == "bytes=100000-"


def test_redirects_are_followed_but_not_for_ever(shelf, target):
    shelf.put("/f", CONTENT)
    shelf.put("/there", statuses=[302], headers={"Location": "/f"})
    transfer(shelf.url("/there"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    shelf.put("/loop", statuses=[302] * 50, headers={"Location": "/loop"})
    with pytest.raises(SourceError, match="without end"):
        transfer(shelf.url("/loop"), target, patience=QUICK)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_for_the_address(shelf, target, status):
    page = shelf.put("/f", CONTENT, statuses=[status] * 9)
    with pytest.raises(SourceError, match=f"answered {status}"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert len(page.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_fault_is_tried_again(shelf, target, status):
    page = shelf.put("/f", CONTENT, statuses=[status, status])
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert len(page.requests) == 3


def test_attempts_are_bounded(shelf, target):
    page = shelf.put("/f", CONTENT, statuses=[500] * 50)
    with pytest.raises(SourceError, match=r"answered 500 .*3 attempts"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert len(page.requests) == 3


def test_progress_renews_the_attempts(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[30_000] * 8)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert len(page.requests) == 9 > QUICK.attempts


def test_retry_after_is_honoured(shelf, target):
    shelf.put("/f", CONTENT, statuses=[429], headers={"Retry-After": "1"})
    started = time.monotonic()
    transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=0.01, longest_wait=2))
    assert time.monotonic() - started >= 1


def test_a_wait_that_is_no_number_is_none(shelf, target):
    shelf.put("/f", CONTENT, statuses=[503], headers={"Retry-After": "\u00b2"})
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT


def test_a_server_may_not_ask_for_more_than_the_longest_wait(shelf, target):
    shelf.put("/f", CONTENT, statuses=[503], headers={"Retry-After": "3600"})
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT


def test_a_wait_beyond_the_limit_is_not_begun(shelf, target):
    shelf.put("/f", CONTENT, statuses=[503] * 9, headers={"Retry-After": "3600"})
    started = time.monotonic()
    with pytest.raises(SourceError, match="answered 503"):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=9, longest_wait=7200, total=60))
    assert time.monotonic() - started < 30


def test_a_slow_drip_ends_at_the_time_limit(shelf, target):
    shelf.put("/f", CONTENT, drip=(1000, 0.05))
    started = time.monotonic()
    with pytest.raises(SourceError, match="too slow"):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, total=0.6))
    assert time.monotonic() - started < 10
    assert 0 < part_of(target).stat().st_size < len(CONTENT)


def test_a_silent_server_is_left_and_asked_again(shelf, target):
    page = shelf.put("/f", CONTENT, drip=(200_000, 1.5))
    transfer(shelf.url("/f"), target, patience=Patience(attempts=2, first_wait=0.01, silence=0.3, total=20))
    assert part_of(target).read_bytes() == CONTENT
    assert [request.get("range") for request in page.requests] == [None, "bytes=200000-"]


def test_no_server_at_all(target):
    with pytest.raises(SourceError, match="no connection"):
        transfer("http://127.0.0.1:9/f", target, patience=QUICK)


def test_another_announced_size_is_refused_before_the_transfer(shelf, target):
    shelf.put("/f", CONTENT)
    with pytest.raises(SourceError, match="offers 300,000 bytes, expected 300,001"):
        transfer(shelf.url("/f"), target, size=300_001, patience=QUICK)
    assert not part_of(target).exists()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/zip"])
def test_a_web_page_is_not_data_whatever_it_is_called(shelf, target, kind):
    shelf.put("/f", b"<!DOCTYPE html><html><title>Sign in</title></html>", content_type=kind)
    with pytest.raises(PageError, match="web page"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert not part_of(target).exists()


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_a_body_that_the_server_coded_is_not_taken_for_the_file(shelf, target, kind):
    """The bytes would be stored as they come, under the name of what they decode to."""
    shelf.put("/f", b"\x1f\x8b coded", content_type=kind, coding="gzip")
    with pytest.raises(SourceError, match=r"coded as gzip|DecodingError"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert not part_of(target).exists()


def test_a_piece_that_the_server_coded_is_not_glued_on(shelf, target):
    page = shelf.put("/f", CONTENT, cuts=[100_000])
    with pytest.raises(SourceError):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=3, first_wait=9, total=1))
    page.coding = "gzip"
    with pytest.raises(SourceError, match="coded as gzip"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT[:100_000]


def test_a_web_page_is_known_by_what_the_server_calls_it(shelf, target):
    shelf.put("/f", b"please log in first", content_type="text/html")
    with pytest.raises(PageError):
        transfer(shelf.url("/f"), target, patience=QUICK)


def test_a_web_page_that_drips_ends_at_the_time_limit(shelf, target):
    shelf.put("/f", b"<html>" + bytes(4000), content_type="text/html", drip=(20, 0.05))
    started = time.monotonic()
    with pytest.raises(PageError, match="web page"):
        transfer(shelf.url("/f"), target, patience=Patience(attempts=1, total=0.2))
    assert time.monotonic() - started < 5


def test_an_etag_that_no_header_can_carry_is_no_validator(shelf, target):
    page = shelf.put("/f", CONTENT, etag='"\u00fc"', cuts=[9_000])
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT
    assert "range" not in page.requests[1]


@pytest.mark.parametrize(
    "address", ["example.org/f", "ftp://127.0.0.1/f", "http://127.0.0.1:port/f", "http://a..b/f"]
)
def test_what_is_no_address_is_not_tried_again(target, address):
    started = time.monotonic()
    with pytest.raises(SourceError, match="is no address"):
        transfer(address, target, patience=Patience(attempts=3, first_wait=9, total=60))
    assert time.monotonic() - started < 5


def test_a_redirect_to_what_is_no_host(shelf, target):
    shelf.put("/f", statuses=[302], headers={"Location": "http://a..b/f"})
    with pytest.raises(SourceError, match="is no address"):
        transfer(shelf.url("/f"), target, patience=QUICK)


@pytest.mark.parametrize("proxy", ["foo://me:secret@127.0.0.1:1", "http://me:secret@127.0.0.1:1x"])
def test_a_proxy_that_cannot_be_used_is_named(target, monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(SourceError, match="http_proxy") as caught:
        transfer("http://example.org/f", target, patience=QUICK)
    assert "secret" not in str(caught.value)


def test_a_body_without_length_that_ends_is_taken(shelf, target):
    shelf.put("/f", CONTENT, length=False)
    transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT


def test_a_body_longer_than_the_file_is_dropped(shelf, target):
    shelf.put("/f", CONTENT, length=False)
    with pytest.raises(SourceError, match="more than the announced 1,000 bytes"):
        transfer(shelf.url("/f"), target, size=1000, patience=QUICK)
    assert not part_of(target).exists()


def test_too_little_space_is_found_before_the_transfer(shelf, target, monkeypatch):
    shelf.put("/f", CONTENT)
    usage = shutil.disk_usage(target.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskError, match="needs 300 kB"):
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).stat().st_size == 0


def test_a_disk_that_fills_up_keeps_the_part(shelf, target, monkeypatch):
    shelf.put("/f", CONTENT, drip=(50_000, 0.01))
    original = Path.open

    def open_full(self, mode="r", *args, **kwargs):
        stream = original(self, mode, *args, **kwargs)
        return FullAfter(stream, 2) if mode == "ab" else stream

    monkeypatch.setattr(module.Path, "open", open_full)
    with pytest.raises(DiskError, match="disk is full") as caught:
        transfer(shelf.url("/f"), target, patience=QUICK)
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    assert 0 < part_of(target).stat().st_size < len(CONTENT)
    assert notes_of(target)["total"] == "300000"
    assert transfer(shelf.url("/f"), target, patience=QUICK)
    assert part_of(target).read_bytes() == CONTENT


class FullAfter:
    """A file whose disk is full after some writes."""

    def __init__(self, stream, writes):
        self.stream, self.writes = stream, writes

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.stream.close()

    def tell(self):
        return self.stream.tell()

    def write(self, piece):
        if self.writes == 0:
            raise OSError(28, "No space left on device")
        self.writes -= 1
        return self.stream.write(piece)
