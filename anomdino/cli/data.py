"""``anomdino data``: which data sets and weights there are, how to get them, and where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomdino.words import counted

if TYPE_CHECKING:
    from anomdino.acquisition.registry import Registry
    from anomdino.config.acquisition import RegistryConfig

app = typer.Typer(no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(help="Names as `anomdino data list` shows them.")]
ParamsFile = Annotated[Path, typer.Option("--params", "-p", help="The parameter file, for data.registry.")]


@app.command("list")
def list_items(
    names: Names = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Terms, files and addresses as well.")] = False,
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Show every item with its state, size and licence."""
    from anomdino.acquisition.acquire import looking_at, store_of
    from anomdino.acquisition.registry import load_registry
    from anomdino.acquisition.report import item_details, item_table

    config = _registry_config(params)
    registry = load_registry(config.file)
    store, wanted = store_of(config), _checked_names(registry, names)
    with looking_at(store):
        if long or names:
            text = "\n\n".join(item_details(registry, name, store) for name in wanted)
        else:
            text = item_table(registry, wanted, store, set(config.items))
    print(text)


@app.command()
def get(
    names: Annotated[list[str], typer.Argument(help="Names as `anomdino data list` shows them.")],
    *,
    into: Annotated[
        Path | None, typer.Option(help="Also lay the data out below this folder (inlier/, val/, ...).")
    ] = None,
    from_dir: Annotated[
        Path | None, typer.Option(help="Folder with files or unpacked data sets that you got by hand.")
    ] = None,
    from_file: Annotated[
        list[str] | None,
        typer.Option(help="A file that you got by hand: PATH, or NAME=PATH where its name differs."),
    ] = None,
    offline: Annotated[bool, typer.Option(help="Do not use the network.")] = False,
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Download and verify items; the stage `download` finds them, and --into lays them out at once."""
    from anomdino.acquisition.acquire import fetch_items
    from anomdino.acquisition.registry import load_registry

    change: dict[str, object] = {"offline": offline} | ({"from_dir": str(from_dir)} if from_dir else {})
    config = _registry_config(params).model_copy(update=change)
    registry = load_registry(config.file)
    given = _given_files(registry, from_file or [])
    counts = fetch_items(registry, _checked_names(registry, names), config, given, into)
    for part, count in counts.items():
        print(f"{part}: {counted(count, 'file')}")


@app.command()
def verify(names: Names = None, params: ParamsFile = Path("params.yaml")) -> None:
    """Check downloaded files again in full: size, digests, content."""
    from anomdino.acquisition.acquire import looking_at, store_of, verify_items
    from anomdino.acquisition.registry import load_registry
    from anomdino.errors import DataError

    config = _registry_config(params)
    registry = load_registry(config.file)
    store = store_of(config)
    with looking_at(store):
        good, bad = verify_items(registry, _checked_names(registry, names), store)
    if not good and not bad:
        print(f"nothing was downloaded yet to {Path(config.downloads).expanduser().resolve()}")
    for name in good:
        print(f"good     {name}")
    for name, fault in bad.items():
        print(f"damaged  {name}: {fault}")
    if bad:
        raise DataError(
            "downloads",
            f"hold {counted(len(bad), 'damaged file')}",
            "remove what is damaged, and get it again",
        )


@app.command()
def where(names: Names = None, params: ParamsFile = Path("params.yaml")) -> None:
    """Show where downloaded files lie, or would lie."""
    from anomdino.acquisition.acquire import store_of
    from anomdino.acquisition.registry import load_registry

    config = _registry_config(params)
    registry, store = load_registry(config.file), store_of(config)
    for name in _checked_names(registry, names):
        for file in registry.files_of(name):
            path = store.path(file)
            print(f"{name}  {path.resolve()}{'' if path.is_file() else '  (not there)'}")


def _registry_config(params: Path) -> RegistryConfig:
    from anomdino.config.acquisition import RegistryConfig
    from anomdino.config.params import load_params

    absent = params == Path("params.yaml") and not params.is_file()
    return RegistryConfig() if absent else load_params(params, only=("data",)).data.registry


def _checked_names(registry: Registry, names: list[str] | None) -> list[str]:
    for name in names or []:
        registry.item(name)
    return names or list(registry.items)


def _given_files(registry: Registry, given: list[str]) -> dict[str, Path]:
    from anomdino.errors import DataError

    known = {file.name for file in registry.files.values()}
    found: dict[str, Path] = {}
    for text in given:
        name, _, path = text.partition("=") if "=" in text else (Path(text).name, "", text)
        if name not in known:
            raise DataError(
                text,
                f"'{name}' is no registered file name",
                "use NAME=PATH; `anomdino data where` shows the names",
            )
        file = Path(path).expanduser()  # the shell leaves NAME=~/... as it is
        if not file.is_file():
            raise DataError(file, "is no file", "check the path given to --from-file")
        found[name] = file
    return found
