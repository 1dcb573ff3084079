"""From a registered source to bytes: plain addresses, Google Drive, the Hugging Face hub, local paths."""

from __future__ import annotations

import os
import re
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anomdino.acquisition.registry import RegisteredFile, Source
from anomdino.acquisition.space import require_space
from anomdino.acquisition.transfer import PageError, Patience, SourceError, drop_part, part_of, transfer
from anomdino.errors import ConfigError

DRIVE_FILE = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
DRIVE_FOLDER = "https://drive.google.com/drive/folders/{id}"
PORTS = {"https": 443, "http": 80}


def fetch(source: Source, file: RegisteredFile, target: Path, patience: Patience) -> bool:
    """Bring a registered file from one source into ``<target>.part``; it is not verified here.

    Args:
        source: Where to get it.
        file: What is expected.
        target: The final file.
        patience: Limits of time.

    Returns:
        Whether an earlier part was continued.

    Raises:
        SourceError: The source does not give the file; the message says why, in words for a person.
        DiskError: There is no room.
    """
    if source.by_hand:
        raise SourceError("must be opened by a person")
    if source.path:
        return _copy(local_path(source), target)
    if source.drive or source.drive_folder:
        number = source.drive or find_in_drive_folder(source.drive_folder, file.name)
        return _from_drive(number, file, target, patience)
    return transfer(address_of(source), target, file.size, patience)


def local_path(source: Source) -> Path:
    """Give the path of a local source with ``~`` and ``$VARIABLES`` expanded."""
    return Path(os.path.expandvars(source.path)).expanduser()


def address_of(source: Source) -> str:
    """Give the address that is asked for a file; empty for local paths and pages for persons."""
    if source.drive:
        return DRIVE_FILE.format(id=source.drive)
    if source.drive_folder:
        return DRIVE_FOLDER.format(id=source.drive_folder)
    if source.hub:
        return _hub_address(source.hub)
    return source.url


def find_in_drive_folder(folder: str, name: str) -> str:
    """Give the id of the file ``name`` in a public Google Drive folder.

    Raises:
        SourceError: The folder cannot be listed or has no such file.
    """
    import gdown
    import requests

    try:
        listed = gdown.download_folder(
            id=folder, skip_download=True, quiet=True, use_cookies=False, timeout=30
        )
    except (gdown.exceptions.DownloadError, requests.RequestException, OSError) as error:
        raise SourceError(f"the Drive folder cannot be listed ({type(error).__name__})") from error
    entries = [(Path(entry.path).name, str(entry.id)) for entry in listed or []]
    found = next((number for held, number in entries if held == name), None)
    if found is None:
        names = ", ".join(sorted(held for held, _ in entries)[:10]) or "nothing"
        raise SourceError(f"the Drive folder has no {name} (it lists {names})")
    return found


def unreachable(addresses: Iterable[str], wait: float = 3.0) -> set[str]:
    """Give the addresses whose server (or whose proxy) takes no connection within ``wait`` seconds.

    Each server is tried once, all at the same time, so that a machine without network learns it in seconds.

    Raises:
        ConfigError: An address, or that of the proxy, is none.
    """
    hosts = {address: _host(address) for address in addresses}
    different = set(hosts.values())
    if not different:
        return set()
    with ThreadPoolExecutor(max_workers=min(16, len(different))) as pool:
        answers = dict(
            zip(different, pool.map(lambda host: _connects(host[0], host[1], wait), different), strict=True)
        )
    return {address for address, host in hosts.items() if not answers[host]}


def _from_drive(number: str, file: RegisteredFile, target: Path, patience: Patience) -> bool:
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    identity = f"drive:{number}"
    try:
        return transfer(DRIVE_FILE.format(id=number), target, file.size, patience, identity)
    except PageError as page:
        try:
            confirmed = get_url_from_gdrive_confirmation(page.text)
        except (
            FileURLRetrievalError,
            LookupError,
            ValueError,
        ):  # gdown reads the one form of the page that it knows
            raise page from None
        return transfer(confirmed, target, file.size, patience, identity)


def _hub_address(text: str) -> str:
    from huggingface_hub import hf_hub_url

    repository, _, name = text.partition(":")
    owner, _, revision = repository.partition("@")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return hf_hub_url(owner, name, revision=revision or None, endpoint=endpoint)
    except ValueError as error:
        cure = "write it as owner/name@revision:file in the registry file"
        raise ConfigError(text, f"names no file of the hub ({error})", cure) from error


def _copy(origin: Path, target: Path) -> bool:
    if not origin.is_file():
        raise SourceError(f"{origin} is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, origin.stat().st_size, f"copying {origin.name}")
    drop_part(target)  # with its notes: a server must not continue what was copied from elsewhere
    shutil.copyfile(origin, part_of(target))
    return False


def _host(address: str) -> tuple[str, int]:
    cure = "correct it in the registry file, in data.registry.mirror or in HF_ENDPOINT"
    host, port = _server(address, address, cure)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(urllib.parse.urlsplit(address).scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(host):
        return host, port
    proxy = proxy if re.match(r"\w+://", proxy) else f"http://{proxy}"
    return _server(proxy, "http_proxy, https_proxy or all_proxy", "correct it")  # it may hold a password


def _server(address: str, name: str, cure: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.hostname or ""
        host.encode("idna")  # as asking for it would
        return host, parts.port or PORTS.get(parts.scheme, 80)
    except ValueError as error:
        raise ConfigError(name, f"is no address ({error})", cure) from error


def _connects(host: str, port: int, wait: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=wait):
            return True
    except OSError:
        return False
