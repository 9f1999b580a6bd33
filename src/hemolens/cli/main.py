"""`hemolens`: its verbs, and the one place where an error becomes a line and an exit code.

Nothing heavy is imported here or at the top of a verb's file, so that ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from hemolens import __version__
from hemolens.cli import exits
from hemolens.cli.analyze import analyze
from hemolens.cli.data import data
from hemolens.cli.deidentify import deidentify
from hemolens.cli.doctor import doctor
from hemolens.cli.evaluate import evaluate
from hemolens.cli.explain import explain
from hemolens.cli.interrupts import kept_interrupts
from hemolens.cli.models import models
from hemolens.cli.pacs import pacs
from hemolens.cli.train import train
from hemolens.cli.tune import tune
from hemolens.cli.web import web
from hemolens.errors import ConfigError, HemolensError

HELP = """Find, classify, outline and measure intracranial hemorrhage on head CT.

Research use only. Not a medical device.
"""

app = typer.Typer(
    name="hemolens",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(analyze)
app.add_typer(models, name="models")
app.add_typer(pacs, name="pacs")
app.add_typer(data, name="data")
app.command()(deidentify)
app.command()(doctor)
app.command()(evaluate)
app.command()(explain)
app.command()(train)
app.command()(tune)
app.command()(web)

# Typer says which exceptions mean wrong usage only through the base of this one.
TyperUsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"hemolens {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Hold the options that come before a verb."""


def run() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; every failure becomes one line on standard error."""
    debug = "--debug" in arguments
    _calm(debug)
    try:
        with kept_interrupts():
            code = app(args=list(arguments), prog_name="hemolens", standalone_mode=False)
    except exits.Interrupted as error:
        if str(error):
            _say(f"interrupted. {error}", exits.INTERRUPTED)
        return exits.INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        code = exits.INTERRUPTED
    except TyperUsageError as error:
        code = _wrong_usage(error)
    except exits.WrongUsage as error:
        code = _say(f"{error} See 'hemolens {error.verb} --help'.", exits.WRONG_USAGE)
    except ConfigError as error:  # an option that does not fit the input
        _trace(debug)
        code = _say(str(error), exits.WRONG_USAGE)
    except HemolensError as error:
        _trace(debug)
        code = _say(str(error), exits.FAILED)
    except MemoryError:
        _trace(debug)
        code = _say("there is not enough memory for this scan.", exits.FAILED)
    except Exception as error:  # noqa: BLE001 - the outermost frame: what arrives here is a bug and is told as one
        _trace(debug)
        hint = "" if debug else " Run again with --debug for the details."
        code = _say(f"internal error ({type(error).__name__}): this is a bug in hemolens.{hint}", exits.FAILED)
    if code == exits.INTERRUPTED:
        _say("interrupted; nothing half-written was left.", exits.INTERRUPTED)
    return int(code or 0)


def _say(line: str, code: int) -> int:
    exits.say(line)
    return code


def _wrong_usage(error: Exception) -> int:
    message = str(getattr(error, "format_message", lambda: error)())
    context = getattr(error, "ctx", None)
    if message:  # empty when the help was shown instead
        command = context.command_path if context else "hemolens"
        _say(
            f"{message.rstrip('.?')}{'?' if message.rstrip('.').endswith('?') else '.'} See '{command} --help'.",
            exits.WRONG_USAGE,
        )
    return exits.WRONG_USAGE


def _trace(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def _calm(debug: bool) -> None:
    """Keep the libraries' own chatter off the terminal."""
    if not debug:
        warnings.simplefilter("ignore")
        logging.getLogger().addHandler(logging.NullHandler())
