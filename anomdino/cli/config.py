"""``anomdino config``: look at, check and replace ``params.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anomdino.config.params import Params

app = typer.Typer(no_args_is_help=True)
FEW = 20  # changes that are listed without being asked for

ParamsFile = Annotated[Path, typer.Option("--params", "-p", help="The parameter file.")]


@app.command()
def use(
    profile: Annotated[str, typer.Argument(help="demo, folder, light or paper")],
    params: ParamsFile = Path("params.yaml"),
    changes: Annotated[bool, typer.Option(help="List every value that changed, however many.")] = False,
) -> None:
    """Rewrite the parameter file from a packaged profile and say what changed."""
    from collections import Counter

    from anomdino.config.params import flatten, load_params, profile_params, render_params
    from anomdino.errors import ConfigError
    from anomdino.io.atomic import atomic_write_text

    chosen = profile_params(profile)
    if params.is_dir():
        raise ConfigError("--params", f"{params} is a folder", "name a file, as in params.yaml")
    try:
        before = flatten(load_params(params)) if params.exists() else {}
    except ConfigError as error:
        print(f"the old file was not valid and is replaced: {error}")
        before = {}
    atomic_write_text(params, render_params(chosen))
    after = flatten(chosen)
    changed = [key for key in after if before.get(key, ...) != after[key]]
    removed = [key for key in before if key not in after]
    if not before:
        print(f"{params}: profile '{profile}', {len(after)} parameters")
        return
    listed = changes or len(changed) + len(removed) <= FEW
    if listed:
        for key in changed:
            print(f"  {key}: {before.get(key, '(new)')} -> {after[key]}")
        for key in removed:
            print(f"  {key}: {before[key]} -> (gone)")
    blocks = Counter(key.split(".")[0] for key in changed)
    where = f" ({', '.join(f'{block} {count}' for block, count in blocks.items())})" if blocks else ""
    hint = "" if listed else "; `--changes` lists them"
    print(f"{params}: profile '{profile}', {len(changed)} changed{where}, {len(removed)} gone{hint}")


@app.command()
def check(params: ParamsFile = Path("params.yaml")) -> None:
    """Check every parameter; the exit code is 2 when one is wrong."""
    from anomdino.config.params import flatten

    print(f"{params}: {len(flatten(checked(params)))} parameters, all valid")


def checked(params: Path) -> Params:
    """Read a parameter file and check all that can be known without the data.

    Raises:
        ConfigError: A parameter is wrong, or a benchmark's layout, entry or split is unknown.
    """
    from anomdino.benchmarks.opening import check_set
    from anomdino.config.params import load_params

    loaded = load_params(params)
    for name, settings in loaded.benchmark.sets.items():
        check_set(name, settings)
    return loaded


@app.command()
def explain(
    prefix: Annotated[
        str, typer.Argument(help="Show the parameters that start with this, for example adt")
    ] = "",
    params: ParamsFile = Path("params.yaml"),
) -> None:
    """Print the parameters in force, one a line."""
    from difflib import get_close_matches

    from anomdino.config.params import flatten, load_params
    from anomdino.errors import ConfigError

    values = flatten(load_params(params))
    found = {key: value for key, value in values.items() if key.startswith(prefix)}
    if not found:
        near = get_close_matches(prefix, [*{key.split(".")[0] for key in values}, *values], n=1)
        cure = f"did you mean '{near[0]}'?" if near else "`anomdino config explain` shows all"
        raise ConfigError(prefix, "begins the name of no parameter", cure)
    for key, value in found.items():
        print(f"{key} = {value}")
