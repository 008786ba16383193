"""The process that runs one notebook: `python -m mlops_cli.pipeline.notebook_process TOLD`.

The file TOLD is written by `pipeline.notebooks`. Variables are set by a cell of their own after the one tagged
`parameters`, as papermill does it. What the cells print is printed; the notebook itself is never written. When a cell
fails, a sentence about it goes into the report, and the notebook as far as it came beside the log.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS, INJECTED = "parameters", "injected-parameters"
_INJECTED_ID = "mlx-parameters"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Failure(Exception):
    """The notebook cannot be run, or a cell failed: a sentence."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the process is to do: paths relative to where it runs, but for those of the report and unfinished copy."""

    notebook: str
    executed: str
    kernel: str
    variables: Mapping[str, object]
    report: Path
    unfinished: Path


def main(path: str) -> int:
    """Run what the file at `path` tells; returns the exit status."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    told = Told(**{**values, "report": Path(values["report"]), "unfinished": Path(values["unfinished"])})
    try:
        run_notebook(told)
    except Failure as error:
        told.report.write_text(str(error), encoding="utf-8")
        print(f"mlx: {error}", flush=True)
        return 1
    return 0


def run_notebook(told: Told) -> None:
    """Run a notebook and write its executed copy; Failure."""
    notebook = _read(told)
    inject(notebook, told.variables, told.notebook)
    client = _client(notebook, told, Path(told.report).parent)
    try:
        _execute(client, notebook, told)
    except Failure:
        _write(notebook, told.unfinished)
        raise
    if told.executed:
        _write(notebook, Path(told.executed))


def inject(notebook: Any, variables: Mapping[str, object], name: str) -> None:
    """Put a cell that sets `variables` after the one tagged `parameters`, or first; one of an earlier run goes."""
    import nbformat

    notebook.cells = [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]
    if not variables:
        return
    language = notebook.metadata.get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise Failure(f"`{name}` is a notebook of {language}, and mlx sets variables in Python only")
    lines = [f"{key} = {value!r}" for key, value in variables.items()]
    cell = nbformat.v4.new_code_cell("\n".join(("# Parameters", *lines)), metadata={"tags": [INJECTED]})
    cell.id = _INJECTED_ID
    if notebook.nbformat_minor < 5:  # cells had no ids then
        del cell["id"]
    tagged = [at for at, cell in enumerate(notebook.cells) if PARAMETERS in cell.metadata.get("tags", [])]
    notebook.cells.insert(tagged[0] + 1 if tagged else 0, cell)


def _read(told: Told) -> Any:
    import nbformat

    try:
        notebook = nbformat.read(told.notebook, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise Failure(f"`{told.notebook}` cannot be read: {error.strerror}") from error
    except Exception as error:  # what jsonschema, json and its own code raise
        first = str(error).strip().partition("\n")[0][:200]
        raise Failure(f"`{told.notebook}` is not a notebook: {first}") from error
    return notebook


def _write(notebook: Any, path: Path) -> None:
    """Write the notebook whole or not at all."""
    import nbformat

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        nbformat.write(notebook, scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _client(notebook: Any, told: Told, scratch: Path) -> Any:
    """Return a client with a kernel manager whose kernel is of this process's group."""
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning.local_provisioner import LocalProvisioner
    from nbclient import NotebookClient

    class InThisGroup(LocalProvisioner):
        """Starts the kernel where whoever ends this process's group ends it, too."""

        async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
            environ = {**kwargs["env"], "JPY_PARENT_PID": str(os.getpid())}
            self.process = subprocess.Popen(cmd, cwd=kwargs.get("cwd"), env=environ, stdin=subprocess.DEVNULL)
            self.pid = self.process.pid
            return self.connection_info

    class Printing(NotebookClient):
        """Prints what cells print, as it comes."""

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            show(msg)
            return super().process_message(msg, cell, cell_index)

    name = told.kernel or notebook.metadata.get("kernelspec", {}).get("name") or "python3"
    manager = AsyncKernelManager(kernel_name=name, transport="ipc", connection_file=str(scratch / "kernel.json"))
    manager.ip = str(scratch / "k")
    manager.kernel_id = "mlx"
    manager.provisioner = InThisGroup(kernel_id="mlx", kernel_spec=_spec(manager, told, name), parent=manager)
    # The same cells with the same results are the same copy: no times in it, and streams whole, however they came.
    same = {"record_timing": False, "coalesce_streams": True}
    return Printing(notebook, km=manager, kernel_name=name, timeout=None, on_notebook_start=_die_of_signals, **same)


def _spec(manager: Any, told: Told, name: str) -> Any:
    from jupyter_client.kernelspec import NoSuchKernel

    try:
        return manager.kernel_spec
    except NoSuchKernel as error:
        message = f"`{told.notebook}` wants the kernel `{name}`, which is not installed"
        raise Failure(f"{message}: `-k python3` in `cmd` names another") from error


def _die_of_signals(notebook: Any) -> None:  # noqa: ARG001 - called by this name
    """Have signals end this process at once, which nbclient makes wait for the kernel: the group has them as well."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)


def show(message: Mapping[str, Any]) -> None:
    """Print what a kernel says that a person would read: streams, plain results, tracebacks."""
    kind, content = message["msg_type"], message["content"]
    if kind == "stream":
        print(content["text"], end="", flush=True)
    elif kind in ("execute_result", "display_data") and "text/plain" in content["data"]:
        print(content["data"]["text/plain"], flush=True)
    elif kind == "error":
        print(_COLOUR.sub("", "\n".join(content["traceback"])), flush=True)


def _execute(client: Any, notebook: Any, told: Told) -> None:
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    cells = [
        cell for cell in notebook.cells if cell.cell_type == "code" and INJECTED not in cell.metadata.get("tags", [])
    ]
    begun: list[Any] = []
    client.on_cell_execute = lambda cell, cell_index: begun.append(cell)  # noqa: ARG005 - called by these names

    def place() -> str:
        """Name the cell that was begun last, counted as a notebook counts that is run from the top."""
        if not begun or begun[-1] not in cells:
            return f"the cell of parameters of `{told.notebook}`" if begun else f"`{told.notebook}`"
        return f"code cell {1 + next(i for i, cell in enumerate(cells) if cell is begun[-1])} of `{told.notebook}`"

    try:
        client.execute(cleanup_kc=True)  # it does not end kernels of managers that it was given, unless it is told
    except CellExecutionError as error:
        said = f"{error.ename}: {error.evalue}".strip().partition("\n")[0][:300]
        raise Failure(f"{place()} raised {said}") from error
    except DeadKernelError as error:
        raise Failure(f"the kernel died in {place()}") from error
    except RuntimeError as error:
        raise Failure(f"the kernel of `{told.notebook}` did not start: {error}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
