"""The program: its global options, and the one boundary where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from typer.core import TyperGroup, TyperOption

from mlops_cli import __version__
from mlops_cli.cli.commands import make_app
from mlops_cli.cli.interrupts import HINT, INTERRUPTED, MESSAGE, take_signals, wants_json
from mlops_cli.cli.output import Colors, Output
from mlops_cli.cli.session import Session, choose_colors, make_session
from mlops_cli.cli.spelling import Spelling, advice
from mlops_cli.cli.streams import CLOSED, open_closed_streams, write_error, write_json
from mlops_cli.cli.text import Style
from mlops_cli.cli.tree import CommandTree
from mlops_cli.cli.usage import HelpWanted, Refusal, explain
from mlops_cli.errors import MlxError, OutsideError, UsageError

BUG = 70
NOBODY_READS = 141

_COMPLETION_HELP = {
    "install_completion": "Install completion for the current shell",
    "show_completion": "Print the completion script for the current shell",
}

app = make_app("mlx", CommandTree, "Version data, models, pipelines and metrics with Git", completion=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mlx {__version__}", flush=True)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the answer and errors")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Twice (-vv): show tracebacks")
    ] = 0,
    folder: Annotated[str, typer.Option("-C", metavar="DIR", help="Run as if started in DIR")] = "",
    color: Annotated[
        str, typer.Option("--color", metavar="WHEN", show_default=False, help="Colour: auto, always or never")
    ] = "auto",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Make the session that every command runs in."""
    if color not in ("auto", "always", "never"):
        raise UsageError(f"`--color {color}` is not a choice", hint="it is `auto`, `always` or `never`")
    if folder:
        try:
            os.chdir(folder)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"cannot go to `{folder}`: {reason}", hint="give `-C` a folder that exists") from error
    context.obj = make_session(quiet=quiet, color=color, folder=folder)


def root_command() -> TyperGroup:
    """Return typer's form of the whole program, whose commands are made when they are named."""
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    for parameter in command.params:
        if isinstance(parameter, TyperOption) and parameter.name in _COMPLETION_HELP:
            parameter.help = _COMPLETION_HELP[parameter.name]
    return command


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Whatever goes wrong has been told on standard error."""
    context = None
    try:
        command = root_command()
        if os.environ.get("_MLX_COMPLETE"):
            command.main(list(arguments), "mlx")  # the shell asks what could come next; typer answers and exits
        # Not `command.main`: it would turn an interrupt and a closed pipe into silent exits.
        with command.make_context("mlx", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except (typer.Exit, SystemExit) as error:
        return int(error.exit_code if isinstance(error, typer.Exit) else error.code or 0)
    except HelpWanted as error:
        write_error(f"{error.format_message()}\n")
        return error.exit_code
    except BrokenPipeError:
        return NOBODY_READS
    except BaseException as error:  # noqa: BLE001 - the one boundary: nobody ever sees a traceback without asking
        session = context.obj if context is not None and isinstance(context.obj, Session) else None
        _show_traceback(error, context.params.get("verbose", 0) if context is not None else 0)
        return _fail(arguments, session, _describe(error, arguments))
    return 0


def run() -> None:
    """Be the `mlx` program: run the command of this process's arguments, and exit."""
    open_closed_streams()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a real stream has it
    take_signals(_interrupt)
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # it has been told, or nobody reads: the interpreter shall not try once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    # The interpreter would now take apart every module and object it has, which is a seventh of a short command's time.
    atexit._run_exitfuncs()  # noqa: SLF001 - what libraries want done at the end, they asked for there
    os._exit(code)


def _interrupt(number: int, frame: object) -> None:
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)  # the system and the shell may both send it; the second says nothing new
    raise KeyboardInterrupt


class _Failure(NamedTuple):
    message: str
    hint: str | None
    code: int


def _describe(error: BaseException, arguments: Sequence[str]) -> _Failure:
    """Return what to tell of an error, whatever it is."""
    if isinstance(error, Refusal):
        error = explain(error)
    elif isinstance(error, OSError):
        error = _outside(error)
    if isinstance(error, MlxError):
        return _Failure(error.message, advice(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _Failure(MESSAGE, HINT, INTERRUPTED)
    hint = f"please report it with {_keep_log(error, arguments)}; nothing was left half done"
    return _Failure(f"mlx has a bug: {type(error).__name__}: {error}", hint, BUG)


def _outside(error: OSError) -> MlxError:
    from mlops_cli.files import translate_os_error

    if error.errno == CLOSED and error.filename is None:
        return OutsideError("cannot write the answer: standard output is closed", hint="`>/dev/null` throws it away")
    return translate_os_error(error, f"use `{os.fsdecode(error.filename)}`" if error.filename else "go on")


def _keep_log(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the traceback to a file; returns how to speak of it."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile("w", prefix="mlx-", suffix=".log", delete=False, errors="replace") as log:
            log.write(f"mlx {__version__}, Python {sys.version}\narguments: {list(arguments)!r}\n\n")
            traceback.print_exception(error, file=log)
    except OSError:
        return "what `MLX_TRACEBACK=1` shows"
    return f"`{log.name}`"


def _show_traceback(error: BaseException, verbose: int) -> None:
    if verbose > 1 or os.environ.get("MLX_TRACEBACK"):
        import traceback

        write_error("".join(traceback.format_exception(error)))


def _fail(arguments: Sequence[str], session: Session | None, failure: _Failure) -> int:
    """Tell a failure: as text, or as one JSON object when the command line has `--json`."""
    as_json = wants_json(arguments)
    output = session.output(as_json) if session else _output_without_session(as_json=as_json)
    hint = failure.hint and output.spelling.spell(failure.hint)
    if as_json:
        value = {"message": failure.message, "hint": hint, "exit_code": failure.code}
        try:
            write_json(sys.stderr, output.document("error", value))
        except OSError:
            return failure.code
    else:
        output.label("error", failure.message, Style.RED)
        if hint:
            output.label("hint", hint, Style.BOLD)
    return failure.code


def _output_without_session(*, as_json: bool) -> Output:
    return Output(as_json, False, Colors() if as_json else choose_colors(), [], Spelling(Path()))
