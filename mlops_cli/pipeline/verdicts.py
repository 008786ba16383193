"""What running something again gave, held against what was recorded: pure comparisons.

Bytes are the same or not. Of metrics, people may say how far a value may be off: then the file that holds them is
judged by its values alone.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlops_cli.documents import flatten, nearest
from mlops_cli.errors import UsageError
from mlops_cli.hashing import Digest
from mlops_cli.records.environment import Difference


class Tolerance(NamedTuple):
    """How far metrics may be off: `amount` for those whose name (or `file:name`) the glob `name` matches.

    With `relative`, a share of the recorded value; else in its own unit.
    """

    name: str
    amount: float
    relative: bool = False

    def covers(self, file: str, name: str) -> bool:
        """Say whether this is about the metric `name` of `file`."""
        return any(fnmatch.fnmatchcase(text, self.name) for text in (name, f"{file}:{name}"))

    def allows(self, recorded: object, made: object) -> bool:
        """Say whether two values are near enough; of what is no number, nothing but itself is near."""
        if not (_is_number(recorded) and _is_number(made)):
            return False
        was, now = float(recorded), float(made)  # type: ignore[arg-type]
        if not (math.isfinite(was) and math.isfinite(now)):
            return False
        return abs(now - was) <= self.amount * (abs(was) if self.relative else 1.0)

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.name}={self.amount * 100:g}%" if self.relative else f"{self.name}={self.amount:g}"


class Standard(NamedTuple):
    """By what results are judged: all outputs byte for byte, or `metrics_only`; metrics by their tolerances."""

    tolerances: tuple[Tolerance, ...] = ()
    metrics_only: bool = False

    def allows(self, file: str, name: str, recorded: object, made: object) -> bool:
        """Say whether a metric that differs is near enough: by the last tolerance that is about it."""
        about = [each for each in self.tolerances if each.covers(file, name)]
        return bool(about) and about[-1].allows(recorded, made)

    def judges_values(self, file: str, names: Iterable[str]) -> bool:
        """Say whether a metrics file is judged by its values and not by its bytes."""
        return self.metrics_only or any(each.covers(file, name) for each in self.tolerances for name in names)


STRICT = Standard()


@dataclass(frozen=True, slots=True)
class OutputVerdict:
    """One output: the digest the lock recorded, the one this run made, and whether a difference `counts`."""

    path: str
    recorded: Digest
    made: Digest
    counts: bool = True

    @property
    def same(self) -> bool:
        """Whether the bytes are the same."""
        return self.recorded == self.made


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """One metric that differs: the value the lock recorded and the one this run gave (None: absent).

    `within` says whether it is near enough.
    """

    file: str
    name: str
    recorded: object
    made: object
    within: bool = False


@dataclass(frozen=True, slots=True)
class StageVerdict:
    """What running one stage again gave."""

    stage: str
    outs: tuple[OutputVerdict, ...]
    metrics: tuple[MetricVerdict, ...]

    @property
    def same(self) -> bool:
        """Whether every output that counts is the same, byte for byte, and every metric the same or near enough."""
        return all(out.same or not out.counts for out in self.outs) and all(metric.within for metric in self.metrics)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The verdict on a revision, stage by stage in run order."""

    revision: str
    commit: str
    stages: tuple[StageVerdict, ...]
    environment: tuple[Difference, ...] = ()  # in what the environment is not the recorded one

    @property
    def same(self) -> bool:
        """Whether everything came out the same, or near enough."""
        return all(stage.same for stage in self.stages)


def compare_metrics(
    file: str, recorded: Mapping[str, object], made: Mapping[str, object], standard: Standard
) -> Iterator[MetricVerdict]:
    """Yield the metrics of `file` that differ; both are nested as in the file."""
    old, new = flatten(recorded), flatten(made)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            within = standard.allows(file, name, old.get(name), new.get(name))
            yield MetricVerdict(file, name, old.get(name), new.get(name), within)


def parse_tolerances(texts: Sequence[str]) -> tuple[Tolerance, ...]:
    """Return what `[FILE:]NAME=AMOUNT` texts say; UsageError. An amount that ends with `%` is relative."""
    found = []
    for text in texts:
        name, _, said = text.rpartition("=")
        relative = said.endswith("%")
        try:
            amount = float(said.removesuffix("%"))
        except ValueError:
            amount = -1.0
        if not name or not 0 <= amount < math.inf:
            raise UsageError(f"`--tolerance {text}` is not NAME=AMOUNT", hint="such as `auc=1e-6` or `loss=1%`")
        found.append(Tolerance(name, amount / 100 if relative else amount, relative))
    return tuple(found)


def refuse_unmatched(standard: Standard, metrics: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError for a tolerance that is about none of the `metrics` (file and name)."""
    known = list(metrics)
    for tolerance in standard.tolerances:
        if not any(tolerance.covers(file, name) for file, name in known):
            near = nearest(tolerance.name, [name for _, name in known])
            hint = f"did you mean `{near}`?" if near else "`mlx metrics show` lists the metrics"
            raise UsageError(
                f"`--tolerance {tolerance}`: no stage of these has the metric `{tolerance.name}`", hint=hint
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
