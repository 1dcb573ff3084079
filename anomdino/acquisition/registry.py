"""The registry of published data sets and weights: what they are, where they lie, how they look."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from anomdino.errors import ConfigError

REGISTRY_FILE = Path(__file__).with_name("registry.yaml")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(_Entry):
    """One place where a file can be had. Exactly one of the kinds is set."""

    url: str = ""
    """An http(s) address that answers with the file itself."""
    drive: str = ""
    """Id of a Google Drive file."""
    drive_folder: str = ""
    """Id of a Google Drive folder that holds the file under its registered name."""
    hub: str = ""
    """Hugging Face hub, `owner/name@revision:file`."""
    path: str = ""
    """A path on this machine or a mounted share; `~` and `$VARIABLES` are expanded."""
    by_hand: str = ""
    """A page that a person must open (login, consent)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        kinds = [name for name in type(self).model_fields if getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError(f"a source has exactly one kind, got {kinds or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Name of the kind that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name))

    @property
    def page(self) -> str:
        """The address that a person opens in a browser to get the file."""
        if self.drive:
            return f"https://drive.google.com/file/d/{self.drive}/view"
        if self.drive_folder:
            return f"https://drive.google.com/drive/folders/{self.drive_folder}"
        if self.hub:
            repository, _, file = self.hub.partition(":")
            name, _, revision = repository.partition("@")
            return f"https://huggingface.co/{name}/resolve/{revision or 'main'}/{file}"
        return self.url or self.by_hand or self.path


PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name that is one of a file in any folder, and no path out of it."""


class RegisteredFile(_Entry):
    """A file as it is published."""

    name: PlainName
    """The name under which it is kept."""
    published: str = ""
    """The name under which it is published, where it is kept under another; taken in `<from_dir>/<item>/`, so that
    e.g. a folder of the hub's files serves as it is."""
    size: int | None = Field(None, ge=1)
    """Bytes, where published or measured by several others."""
    about: int | None = Field(None, ge=1)
    """Bytes, roughly, where the exact size is not known."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest; an unknown one is recorded on the first success."""
    sha256_prefix: str | None = Field(None, pattern=r"^[0-9a-f]{6,63}$")
    """First digits of the digest, as open-mmlab puts them into its file names."""
    md5: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    """Published MD5, enforced where it is known: it finds damage, not malice."""
    archive: bool = False
    """Whether it is a zip or tar that is unpacked."""
    members: int = Field(400_000, ge=1)
    """Most members that the archive may have."""
    unpacked: int = Field(120_000_000_000, ge=1)
    """Most bytes that the archive may unpack to."""
    sources: list[Source] = Field(min_length=1)
    """Where it can be had, best first."""

    @property
    def expected_size(self) -> int | None:
        """Size in bytes, exact or rough, or None."""
        return self.size or self.about


class Expectation(_Entry):
    """Files that must be there after unpacking."""

    pattern: str
    """Glob below the root of the unpacked data."""
    count: int | None = Field(None, ge=1)
    """Exact number of matches."""
    least: int = Field(1, ge=0)
    """Smallest number of matches, where the exact number is not known."""


class RegisteredItem(_Entry):
    """A data set or a set of weights."""

    title: str
    """Full name."""
    purpose: str
    """What this project uses it for."""
    part: Literal["inlier", "outliers", "val", "weights", "train"]
    """The folder of `data/` that it goes to; train: a complete training set."""
    licence: str
    """Licence or terms, in one line."""
    terms: str = ""
    """Address of the terms."""
    agreement: str = ""
    """What must be agreed to by hand before the download."""
    homepage: str
    """Where the item is described."""
    cite: str = ""
    """The publication to cite."""
    bundles: list[Annotated[list[str], Field(min_length=1)]] = Field(min_length=1)
    """Sets of file ids, each of which is enough; the first that can be had is taken."""
    pick: list[str] = Field(default_factory=list)
    """Archives among the files that are not unpacked as a whole: members are picked from them."""
    layout: list[list[Expectation]] = Field(default_factory=list)
    """Expected files, one list a bundle (or one for all)."""
    picked: list[Expectation] = Field(default_factory=list)
    """What is expected besides where a person unpacked the archives from which members are picked."""
    normalise: str
    """Name of the function that brings it into the layout that the readers expect."""
    note: str = ""
    """What a user should know before getting it."""

    def expectations(self, bundle: int) -> list[Expectation]:
        """Give the expected files of a bundle."""
        return self.layout[min(bundle, len(self.layout) - 1)] if self.layout else []


class Registry(_Entry):
    """All files and items."""

    files: dict[PlainName, RegisteredFile]
    """By id."""
    items: dict[str, RegisteredItem]
    """By name."""

    @model_validator(mode="after")
    def _complete(self) -> Registry:
        for name, item in self.items.items():
            wanted = [*item.pick, *(file for bundle in item.bundles for file in bundle)]
            missing = [file for file in wanted if file not in self.files]
            if missing:
                raise ValueError(f"item {name} names unknown files {missing}")
        names = [file.name for file in self.files.values()]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        return self

    def item(self, name: str) -> RegisteredItem:
        """Give an item.

        Raises:
            ConfigError: There is no such item; the message lists those there are.
        """
        if name not in self.items:
            raise ConfigError("item", f"'{name}' is unknown", f"choose from {', '.join(self.items)}")
        return self.items[name]

    def files_of(self, *names: str) -> list[RegisteredFile]:
        """Give the files of items, of all their bundles, each once.

        Raises:
            ConfigError: There is no such item.
        """
        ids = dict.fromkeys(file for name in names for bundle in self.item(name).bundles for file in bundle)
        return [self.files[one] for one in ids]

    def sizes(self, files: Iterable[str]) -> tuple[int, bool]:
        """Give the total size of files in bytes, and whether every one of them is known."""
        known = [self.files[file].expected_size for file in files]
        return sum(size or 0 for size in known), None not in known


def load_registry(path: Path | str = "") -> Registry:
    """Read a registry file; an empty path takes the packaged one.

    Raises:
        ConfigError: The file is missing or does not have the form of :class:`Registry`.
    """
    path = Path(path).expanduser() if path else REGISTRY_FILE
    return _load(path, path.stat().st_mtime_ns if path.is_file() else 0)


@cache
def _load(path: Path, _: int) -> Registry:
    try:
        return Registry.model_validate(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, YAMLError) as error:
        cure = "correct it, or leave data.registry.file empty for the packaged one"
        raise ConfigError(path, f"is no registry: {error}", cure) from error
