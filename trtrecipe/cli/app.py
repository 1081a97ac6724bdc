"""The command line: commands, and the one door through which errors reach a person."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer
from typer.exceptions import TyperException

from trtrecipe.cli import (
    build,
    bundle,
    cache,
    devices,
    doctor,
    explain,
    import_result,
    init,
    inspect,
    plan,
    recipes,
)
from trtrecipe.errors import InputError, Problem, TrtrecipeError

INTERRUPTED = 130

app = typer.Typer(
    name="trtrecipe",
    help="Build verified, reproducible TensorRT engines from a recipe.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("validate")(recipes.validate)
app.command("show")(recipes.show)
app.command("plan")(plan.plan)
app.command("build")(build.build)
app.command("explain")(explain.explain)
app.command("bundle")(bundle.bundle)
app.command("import-result")(import_result.import_result)
app.command("inspect")(inspect.inspect)
app.command("schema")(recipes.schema)
app.command("doctor")(doctor.doctor)
app.add_typer(devices.app, name="devices", help="Device profiles that recipes can name.")
app.add_typer(cache.app, name="cache", help="The store of finished steps.")


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show a traceback with an error."),
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    # `run` reads --debug itself, before anything can fail.
    del debug
    if version:
        from trtrecipe import __version__

        typer.echo(f"trtrecipe {__version__}")
        raise typer.Exit


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code (DESIGN: 0 done, 1 a step failed, 2 wrong input, 3 gate, 5 pending, 130)."""
    signal.signal(signal.SIGTERM, _interrupt)
    as_json = "--json" in arguments
    try:
        code: Any = app(list(arguments) or ["--help"], standalone_mode=False, prog_name="trtrecipe")
        sys.stdout.flush()
        if code != INTERRUPTED:  # what typer makes of a Ctrl-C
            return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        pass
    except BrokenPipeError:
        # The reader of our output went away; nobody is left to be told.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - what is left in the old one cannot be written
        return 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _report(_in_words(error), as_json)
    # A second Ctrl-C must not cut the message short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _report(TrtrecipeError("interrupted; what finished is kept"), as_json)
    return INTERRUPTED


def _in_words(error: Exception) -> TrtrecipeError:
    """Any error as one that is printed as a message."""
    if isinstance(error, TrtrecipeError):
        return error
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        hint = f"see: {context.command_path} --help" if context is not None else None
        return InputError.of(error.format_message(), hint)
    if isinstance(error, OSError) and error.strerror:
        return TrtrecipeError(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return TrtrecipeError(
        f"unexpected {type(error).__name__}: {error}", "this is a defect of trtrecipe; --debug shows where it happened"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _report(error: TrtrecipeError, as_json: bool) -> int:
    from trtrecipe.cli.render import error_document, print_json, problem_lines

    problems = error.problems if isinstance(error, InputError) else (Problem(error.message, hint=error.hint),)
    if as_json:
        print_json(error_document(problems))
    for problem in problems:
        sys.stderr.write("\n".join(problem_lines(problem)) + "\n")
    return error.exit_code
