"""The command ``anomdino``. Commands import what they need when they run, so that ``--help`` is quick."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

import anomdino
from anomdino.cli import config, data, doctor, evaluate, export, fuse, predict, show, watch, weights
from anomdino.errors import AnomdinoError, DiskError
from anomdino.progress import log_level

app = typer.Typer(
    help="Find what no class list knows on the road, to the pixel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(predict.predict)
app.command()(watch.watch)
app.command()(doctor.doctor)
app.command()(show.show)
app.command()(fuse.fuse)
app.command()(fuse.calibrate)
app.command()(fuse.tune)
app.command()(export.export)
app.command()(evaluate.evaluate)
app.command()(evaluate.compare)
app.add_typer(evaluate.submit_app, name="submit", help="Write files for a benchmark's server.")
app.add_typer(config.app, name="config", help="Look at, check and replace params.yaml.")
app.add_typer(data.app, name="data", help="Data sets and weights: what there is, how to get it.")
app.add_typer(weights.app, name="weights", help="Convert published checkpoints.")


def _version(wanted: bool) -> None:
    if wanted:
        print(anomdino.__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Log warnings and errors only, and show no bar.")
    ] = False,
) -> None:
    """Find what no class list knows on the road, to the pixel."""
    level = "WARNING" if quiet else log_level()
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)


def run() -> None:
    """Run the command line; an error of the user's kind is one message and an exit code, not a traceback.

    SIGTERM ends a command as Ctrl-C does, so that no half-written file stays and what was done is told.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except AnomdinoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a file that may not be looked at, a name that is too long
        if error.filename is None:
            raise
        logging.getLogger(__name__).debug("", exc_info=True)
        cause, cure = (error.strerror or str(error)).lower(), "check the path and its permissions"
        print(f"error: {DiskError(error.filename, cause, cure)}", file=sys.stderr)
        sys.exit(DiskError.exit_code)


if __name__ == "__main__":
    run()
