"""Which stage may begin next. Pure: it starts nothing, and asks no clock.

A stage is ready when those that make its inputs are done, and begins when a slot is free, the machine has what it
takes, and none of its mutex groups is taken. Ready stages begin in run order; one that does not fit lets others pass.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum

from mlops_cli.errors import UsageError
from mlops_cli.records.conduct import MEMORY, Conduct
from mlops_cli.records.stages import Stage


class _State(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"  # what it needs failed


class Schedule:
    """The stages of one run: `order` in run order, `upstream` the makers of each one's inputs.

    At most `jobs` run at once, and of each resource no more than `capacity`. UsageError for a stage that would never
    fit.
    """

    def __init__(
        self,
        order: Sequence[Stage],
        upstream: Mapping[str, Iterable[str]],
        *,
        jobs: int,
        capacity: Mapping[str, float],
    ) -> None:
        for stage in order:
            _refuse_unfit(stage, capacity)
        self._stages = {stage.address: stage for stage in order}
        self._states = dict.fromkeys(self._stages, _State.WAITING)
        self._jobs = jobs
        self._left = dict(capacity)
        self._taken: set[str] = set()
        self._needs = {
            address: {above for above in upstream[address] if above in self._stages} for address in self._stages
        }
        self._below: dict[str, list[str]] = {address: [] for address in self._stages}
        for address, above in self._needs.items():
            for each in above:
                self._below[each].append(address)
        self._candidates = [address for address in self._stages if not self._needs[address]]
        self._position = {address: number for number, address in enumerate(self._stages)}
        self._running = 0

    @property
    def running(self) -> tuple[str, ...]:
        """The stages that have begun and not ended, in run order."""
        return tuple(address for address, state in self._states.items() if state is _State.RUNNING)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The stages that cannot run, for what they need has failed, in run order."""
        return tuple(address for address, state in self._states.items() if state is _State.DROPPED)

    @property
    def ended(self) -> bool:
        """Whether nothing runs, and nothing can begin any more."""
        return not self._running and not self._candidates

    def next(self, resting: Collection[str] = ()) -> Stage | None:
        """Return the stage that begins next, the first in run order that can; None when none can now.

        Those that are `resting` are passed over.
        """
        if self._running >= self._jobs:
            return None
        for address in self._candidates:
            if address not in resting and self._fits(self._stages[address].conduct):
                return self._stages[address]
        return None

    def begin(self, address: str) -> None:
        """Note that a stage that was ready has begun."""
        self._candidates.remove(address)
        self._states[address] = _State.RUNNING
        self._running += 1
        self._take(self._stages[address].conduct, 1)

    def again(self, address: str) -> None:
        """Note that a stage that had begun is to begin anew."""
        self._give_back(address, _State.WAITING)
        self._add(address)

    def succeed(self, address: str) -> None:
        """Note that a stage that had begun is done."""
        self._give_back(address, _State.DONE)
        for below in self._below[address]:
            self._needs[below].discard(address)
            if not self._needs[below] and self._states[below] is _State.WAITING:
                self._add(below)

    def fail(self, address: str) -> None:
        """Note that a stage that had begun has failed: whatever needs it is dropped."""
        self._give_back(address, _State.FAILED)
        pending = list(self._below[address])
        while pending:
            below = pending.pop()
            if self._states[below] is _State.WAITING:
                self._states[below] = _State.DROPPED
                pending.extend(self._below[below])

    def stop(self) -> None:
        """Let nothing begin any more."""
        for address, state in self._states.items():
            if state is _State.WAITING:
                self._states[address] = _State.DROPPED
        self._candidates = []

    def _add(self, address: str) -> None:
        insort(self._candidates, address, key=self._position.__getitem__)

    def _give_back(self, address: str, state: _State) -> None:
        self._states[address] = state
        self._running -= 1
        self._take(self._stages[address].conduct, -1)

    def _fits(self, conduct: Conduct) -> bool:
        if not self._taken.isdisjoint(conduct.mutex):
            return False
        return all(amount <= self._left[name] + 1e-9 for name, amount in conduct.resources)

    def _take(self, conduct: Conduct, sign: int) -> None:
        for name, amount in conduct.resources:
            self._left[name] -= sign * amount
        if sign > 0:
            self._taken.update(conduct.mutex)
        else:
            self._taken.difference_update(conduct.mutex)


def _refuse_unfit(stage: Stage, capacity: Mapping[str, float]) -> None:
    for name, amount in stage.conduct.resources:
        if name not in capacity:
            raise UsageError(
                f"{stage.file}:{stage.line}: stage `{stage.address}` takes `{name}`, of "
                "which nothing says how much there is",
                hint=f"`resources: {{{name}: 1}}` at the top of `{stage.file}` does, or `mlx run --resource {name}=1`",
            )
        if amount > capacity[name]:
            raise UsageError(
                f"{stage.file}:{stage.line}: stage `{stage.address}` takes {_spell(name, amount)}, and there are "
                f"{_spell(name, capacity[name])}",
                hint=f"lower it, or `mlx run --resource {name}={amount:.15g}` if there is that much",
            )


def _spell(name: str, amount: float) -> str:
    if name != MEMORY:
        return f"{amount:g} {name}"
    size = amount / 2**30
    return f"{f'{size:.3g}' if size < 100 else f'{size:,.0f}'} GiB of memory"
