"""How a run goes, who carries its stages out, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, NamedTuple, Protocol

from mlops_cli.errors import MlxError
from mlops_cli.pipeline.plan import Decision
from mlops_cli.pipeline.selection import Reach
from mlops_cli.pipeline.usage import Spent


class Listener(Protocol):
    """Is told how a run goes, as it goes."""

    def expect(self, stages: int) -> None:
        """So many stages are to be brought up to date."""

    def begin(self, decision: Decision) -> None:
        """A stage has been decided and its action begins."""

    def write(self, stage: str, data: bytes) -> None:
        """The command of the stage at an address wrote `data`; called from another thread."""

    def ended(self, stage: str) -> None:
        """The commands of the stage at an address have ended, however they did: they write nothing more."""

    def spent(self, stage: str, spent: Spent) -> None:
        """The commands of the stage at an address took so much; called from another thread."""

    def wait(self) -> None:
        """Commands run, and the run waits for them; called about twice a second."""

    def failed(self, stage: str, error: MlxError) -> None:
        """An attempt at the stage at an address failed; there may be another one."""

    def done(self, result: StageResult) -> None:
        """A stage is done."""

    def note(self, message: str) -> None:
        """Something the user should know, that stops nothing."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What was done with a stage, why, and how long it took (seconds of wall time)."""

    decision: Decision
    seconds: float


class Manner(NamedTuple):
    """How a run goes: `jobs` stages at once at most (0: one a CPU), of each resource what `resources` say besides.

    With `keep_going`, a failure stops only what needs it; with `force`, the named stages run whatever they are; without
    `run_cache`, nothing of earlier runs is restored. `reach` is how far it goes from the stages that are named.
    If `offline`, URLs count as their stages' locks recorded them.
    """

    jobs: int = 1
    keep_going: bool = False
    force: bool = False
    run_cache: bool = True
    resources: Mapping[str, float] = {}
    reach: Reach = Reach()
    offline: bool = False


class Work(Protocol):
    """Carries out decisions, one at a time but for `execute`; an attempt is what `begin` makes of one."""

    def check(self, decision: Decision) -> None:
        """Raise what keeps a decision from being carried out, before anything is touched."""

    def begin(self, decision: Decision) -> Any:
        """Prepare a stage whose commands are to run; what there was comes back if this fails."""

    def execute(self, attempt: Any, cancelled: Event) -> None:
        """Run the commands, in any thread. StageFailed; Cancelled when the event was set."""

    def finish(self, attempt: Any) -> Decision:
        """Publish what the commands made; returns the decision as it has become."""

    def give_up(self, attempt: Any, error: BaseException) -> None:
        """Bring back what there was before commands that failed with `error`."""

    def kill(self) -> None:
        """End all commands that run, at once and without asking."""

    def restore(self, decision: Decision) -> None:
        """Bring the outputs that an earlier run made."""


PLAINLY = Manner()
