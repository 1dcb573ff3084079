"""One file over HTTP: resumed, retried, limited in time, and under its final name only when it is whole.

The parts that are hard to get right are left to kept libraries: httpx (streams, redirects, proxies, timeouts,
a clear error for a body that ends early) and tenacity (growing waits with jitter). pooch and fsspec resume
nothing; gdown and huggingface_hub resume, each in its own way and for its own addresses alone, so they
resolve addresses here (:mod:`anomdino.acquisition.sources`) and one transfer serves all of them.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import tenacity
from tqdm import tqdm

from anomdino.acquisition.space import disk_errors, in_words, require_space
from anomdino.acquisition.verify import HEAD, describe_page
from anomdino.io.atomic import atomic_write_json

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAGE = 1 << 20
ASK_FOR_BYTES = {"Accept-Encoding": "identity", "User-Agent": "anomdino"}


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried.

    Args:
        attempts: Connections for one address that bring nothing new before it is given up.
        first_wait: Seconds before the second attempt; each further wait doubles, with jitter.
        longest_wait: Longest wait in seconds, also for a server's ``Retry-After``.
        silence: Seconds without a byte, or without a connection, after which an attempt ends.
        total: Seconds for the file, all attempts and waits included.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    silence: float = 30.0
    total: float = 86400.0


class SourceError(Exception):
    """This address cannot give the file; another one may."""


class PageError(SourceError):
    """The server answered with a web page in place of the file.

    Args:
        meaning: What the page is.
        text: The page.
        address: Where it came from.
    """

    def __init__(self, meaning: str, text: str, address: str) -> None:
        super().__init__(f"answered with {meaning}")
        self.text, self.address = text, address


class _PassingError(Exception):
    """A fault that may pass. ``wait`` is what the server asks for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def part_of(target: Path) -> Path:
    """Give the name that ``target`` has while it is incomplete."""
    return target.with_name(f"{target.name}.part")


def drop_part(target: Path) -> None:
    """Remove the incomplete ``target``, and what is noted about the server that it came from."""
    part = part_of(target)
    part.unlink(missing_ok=True)
    _notes_of(part).unlink(missing_ok=True)


def _notes_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def transfer(
    url: str, target: Path, size: int | None = None, patience: Patience | None = None, identity: str = ""
) -> bool:
    """Bring what lies at ``url`` into ``<target>.part``.

    An earlier part is continued when the server's validators (ETag or date, and total size) are those it
    began with; a server that sends the whole file (200) makes it start anew; 416 means that nothing is
    missing, or that the part is of another file and is dropped. The caller verifies the part and renames it.

    Args:
        url: An http(s) address.
        target: The final file; only its ``.part`` and ``.part.json`` beside it are written.
        size: Bytes, where known: a server that offers another number is refused before the transfer.
        patience: Limits of time.
        identity: What the address stands for, where its text changes from one request to the next.

    Returns:
        Whether the part was continued from an earlier piece.

    Raises:
        PageError: The answer is a web page.
        SourceError: The address has no such file, or the patience is used up.
        DiskError: There is no room; the part is kept.
    """
    patience = patience or Patience()
    part = _Part(part_of(target), identity or url)
    resumed = part.size > 0
    tally = _Tally(part, patience)
    deadline = time.monotonic() + patience.total
    late = tenacity.stop_before_delay(patience.total)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_PassingError),
        wait=tally.wait,
        stop=lambda state: tally.exhausted(state) or late(state),
        reraise=True,
    )
    with _client(patience) as client:
        try:
            for attempt in retrying:
                with attempt:
                    resumed = resumed or attempt.retry_state.attempt_number > 1
                    _attempt(client, url, part, size, deadline)
        except _PassingError as fault:
            tries = retrying.statistics.get("attempt_number", 1)
            raise SourceError(
                f"{fault} ({tries} attempts within the limit of {patience.total:g} s)"
            ) from fault
    return resumed


def _client(patience: Patience) -> httpx.Client:
    try:
        return httpx.Client(
            follow_redirects=True, timeout=httpx.Timeout(patience.silence), headers=ASK_FOR_BYTES
        )
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        raise SourceError(
            f"cannot be asked through the proxy that http_proxy, https_proxy or all_proxy names ({error})"
        ) from error


class _Tally:
    """Counts attempts that bring nothing new, and says how long to wait."""

    def __init__(self, part: _Part, patience: Patience) -> None:
        self.part, self.patience = part, patience
        self.size, self.failures = part.size, 0
        self.grow = tenacity.wait_exponential_jitter(
            initial=patience.first_wait, max=patience.longest_wait, jitter=patience.first_wait
        )

    def exhausted(self, state: tenacity.RetryCallState) -> bool:
        self.failures = 0 if self.part.size > self.size else self.failures + 1
        self.size = self.part.size
        return self.failures >= self.patience.attempts

    def wait(self, state: tenacity.RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome else None
        asked = fault.wait if isinstance(fault, _PassingError) else 0.0
        return float(min(max(self.grow(state), asked), self.patience.longest_wait))


class _Part:
    """The incomplete file and, beside it, the validators that its server gave."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.notes = _notes_of(path)
        if not self.known() and path.exists():
            self.drop()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def known(self) -> dict[str, str]:
        try:
            return {str(key): str(value) for key, value in json.loads(self.notes.read_text("utf-8")).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def begin(self, validators: dict[str, str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        atomic_write_json(self.notes, validators)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)


def _attempt(client: httpx.Client, url: str, part: _Part, size: int | None, deadline: float) -> None:
    known = part.known()
    validator = _strong(known)
    if part.size and (not validator or known.get("source") != part.identity):
        part.drop()
    headers = {"Range": f"bytes={part.size}-", "If-Range": validator} if part.size else {}
    try:
        with client.stream("GET", url, headers=headers) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
                _at_the_end(answer, part)
                return
            _accept_status(answer)
            total = _prepare(answer, part, size, deadline)
            _receive(answer, part, total, deadline)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise SourceError(f"is no address ({error})") from error
    except httpx.TooManyRedirects as error:
        raise SourceError("redirects without end") from error
    except httpx.RequestError as error:
        raise _PassingError(_describe(error)) from error


def _accept_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status in {200, 206}:
        return
    words = f"answered {status} {answer.reason_phrase}".rstrip()
    if status in TEMPORARY:
        raise _PassingError(words, _retry_after(answer))
    raise SourceError(words)


def _at_the_end(answer: httpx.Response, part: _Part) -> None:
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    if total != str(part.size):
        part.drop()
        raise _PassingError(
            f"the file at the source changed (it now has {total or 'another number of'} bytes)"
        )


def _prepare(answer: httpx.Response, part: _Part, size: int | None, deadline: float) -> int | None:
    """Decide whether the answer continues the part or replaces it, and give the total size."""
    if answer.status_code == httpx.codes.PARTIAL_CONTENT:
        unit, _, total_text = answer.headers.get("content-range", "").partition("/")
        known = part.known()
        same = _strong(_validators(answer, part.identity, total_text)) in {"", _strong(known)}
        if not unit.startswith(f"bytes {part.size}-") or total_text != known.get("total") or not same:
            part.drop()
            raise _PassingError("the file at the source changed")
        _require_plain(answer)
        return int(total_text) if total_text.isdigit() else None
    length = answer.headers.get("content-length", "")
    total = int(length) if length.isdigit() else None
    if "html" in answer.headers.get("content-type", ""):
        raise _page(answer, deadline)
    _require_plain(answer)
    if size is not None and total is not None and size != total:
        raise SourceError(f"offers {total:,} bytes, expected {size:,}")
    part.begin(_validators(answer, part.identity, length))
    return total if total is not None else size


def _require_plain(answer: httpx.Response) -> None:
    coding = answer.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise SourceError(f"sends the file coded as {coding}, though it was asked for plain bytes")


def _page(answer: httpx.Response, deadline: float) -> PageError:
    body = b""
    for piece in answer.iter_bytes():
        body += piece
        if len(body) > LONGEST_PAGE or time.monotonic() > deadline:
            break
    return PageError(describe_page(body) or "a web page", body.decode("utf-8", "replace"), str(answer.url))


def _receive(answer: httpx.Response, part: _Part, total: int | None, deadline: float) -> None:
    offset = part.size
    require_space(part.path.parent, (total or offset) - offset, f"downloading {part.path.name}")
    name = part.path.name.removesuffix(".part")
    with disk_errors(part.path), part.path.open("ab") as out, _bar(name, offset, total) as bar:
        for piece in answer.iter_raw():
            if out.tell() == 0 and (page := describe_page(piece[:HEAD])):
                part.drop()
                raise PageError(page, piece.decode("utf-8", "replace"), str(answer.url))
            out.write(piece)
            bar.update(len(piece))
            if time.monotonic() > deadline:
                raise SourceError(f"is too slow: {in_words(out.tell())} came within the time limit")
    if total is not None and part.size < total:
        raise _PassingError(f"the connection ended at {part.size:,} of {total:,} bytes")
    if total is not None and part.size > total:
        part.drop()
        raise _PassingError(f"more than the announced {total:,} bytes came")


def _bar(name: str, offset: int, total: int | None) -> tqdm:
    return tqdm(
        desc=name,
        initial=offset,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        leave=False,
    )


def _validators(answer: httpx.Response, identity: str, total: str) -> dict[str, str]:
    found = {"source": identity, "total": total}
    for name in ("etag", "last-modified"):
        if name in answer.headers:
            found[name] = answer.headers[name]
    return found


def _strong(validators: dict[str, str]) -> str:
    """Give the validator that If-Range may carry: a strong ETag (in ASCII), else the date, else nothing."""
    etag = validators.get("etag", "")
    strong = etag.isascii() and not etag.startswith("W/")
    return etag if etag and strong else validators.get("last-modified", "")


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0  # isdigit is true of a raised 2, which is no number


def _describe(error: Exception) -> str:
    name = type(error).__name__
    known = {
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "the server fell silent",
        "ConnectError": "no connection",
        "RemoteProtocolError": "the connection broke",
        "ReadError": "the connection broke",
    }
    return f"{known.get(name, name)}{f' ({error})' if str(error) else ''}"
