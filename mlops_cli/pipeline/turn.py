"""A command's turn: it holds the checkout, and the cache against `mlx gc`, and can hand over both for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from mlops_cli.errors import LockedError, MlxError
from mlops_cli.pipeline.journal import recover
from mlops_cli.pipeline.status import tell_unfinished
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.guard import RETURN_SECONDS, TELL_SECONDS
from mlops_cli.workspace.litter import sweep
from mlops_cli.workspace.project import Project


class Turn:
    """Holds the checkout against other commands that write it, with everything put right that a killed one left."""

    def __init__(self, project: Project, doing: str, reporter: Reporter = SILENT) -> None:
        self._project = project
        self._doing = doing
        self._reporter = reporter
        self._waiting: set[str] = set()  # stages whose old outputs cannot be brought back yet
        self._held = ExitStack()
        self.is_held = False

    def take(self, timeout: float | None = None) -> None:
        """Take the checkout; LockedError after `timeout` seconds (None: `core.lock_timeout`)."""
        with ExitStack() as taking:
            if taking.enter_context(self._project.lock(self._doing, timeout=timeout)):
                with suppress(MlxError):
                    sweep(self._project)
            recover(self._project, self._reporter, self._waiting)
            self._held = taking.pop_all()
            self.is_held = True

    def give(self) -> None:
        """Give the checkout back, if it is held."""
        self.is_held = False
        self._held.close()

    @contextmanager
    def handed_over(self, note: Callable[[str], None], *, idle: bool = False) -> Iterator[None]:
        """Let others have the checkout, and `mlx gc` the cache, for the length of the block.

        `note` is told for whom this waits afterwards, when that takes long. Who is `idle` has no work in hand to put
        right, and does not wait when the block is interrupted.
        """
        with self._project.guard.released(note):
            self.give()
            try:
                yield
            except BaseException:
                if not idle:
                    self._take_back(note)
                raise
            self._take_back(note)

    def _take_back(self, note: Callable[[str], None]) -> None:
        """Wait as long as it takes: whoever gave way has work in hand that must not be lost for a wait."""
        try:
            self.take(TELL_SECONDS)
        except LockedError as error:
            note(f"waiting: {error.message}")
            self.take(RETURN_SECONDS)


@contextmanager
def exclusive(project: Project, doing: str, reporter: Reporter = SILENT, *, dry_run: bool = False) -> Iterator[Turn]:
    """Hold the checkout for the length of the block, and the cache against `mlx gc` until what is stored is recorded.

    A dry run holds the checkout alone and puts nothing right: it only tells that there is something.
    """
    turn = Turn(project, doing, reporter)
    if dry_run:
        with project.lock(doing):
            tell_unfinished(project, reporter)
            yield turn
        return
    turn.take()
    try:
        with project.guard.held():
            yield turn
    finally:
        turn.give()
