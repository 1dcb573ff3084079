"""Whether the registered addresses still answer. Not part of `make test`: run ``pytest -m network``."""

from __future__ import annotations

import httpx
import pytest

from anomdino.acquisition.registry import load_registry
from anomdino.acquisition.sources import address_of
from anomdino.acquisition.verify import describe_page

ADDRESSES = sorted(
    (file, address_of(source), entry.size)
    for file, entry in load_registry().files.items()
    for source in entry.sources
    if address_of(source)
)


def test_every_source_has_an_address_or_needs_a_person():
    for entry in load_registry().files.values():
        for source in entry.sources:
            assert bool(address_of(source)) != bool(source.by_hand)
            assert source.page.startswith(("http://", "https://"))


@pytest.mark.network
@pytest.mark.parametrize(
    ("file", "address", "size"), ADDRESSES, ids=[f"{f}-{n}" for n, (f, *_) in enumerate(ADDRESSES)]
)
def test_an_address_answers_with_the_beginning_of_data(file, address, size):
    with httpx.stream(
        "GET", address, follow_redirects=True, timeout=30, headers={"Range": "bytes=0-4095"}
    ) as answer:
        assert answer.status_code in {200, 206}, f"{file}: {address} answered {answer.status_code}"
        head = next(answer.iter_bytes(4096), b"")
        total = answer.headers.get("content-range", "").rpartition("/")[2] or answer.headers.get(
            "content-length", ""
        )
    page = describe_page(head)
    assert not page or "folders" in address or "consent" in page, f"{file}: {address} answered with {page}"
    if size is not None and total.isdigit():
        assert int(total) == size
