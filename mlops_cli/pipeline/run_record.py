"""The record of a run, as it lies beside the logs of its stages: lines of JSON, each one fact, added as the run goes.

    {"mlx": 1, "event": "run", "at": "2026-01-02T03:04:05Z", "doing": "mlx run"}
    {"event": "begin", "stage": "train", "action": "run", "reasons": ["…"], "attempt": 1, "at": "…"}
    {"event": "end", "stage": "train", "attempt": 1, "outcome": "done", "at": "…", "seconds": 2.1, …}
    {"event": "close", "outcome": "done", "at": "…", "seconds": 2.3}

Whoever writes it holds a lock on it for as long as the run is on: a run without that lock and without its last line was
killed. A line that is torn, or means nothing, is passed over: the record explains, and nothing depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from mlops_cli.workspace.project import file_name

RECORD = "record.jsonl"
VERSION = 1


class Outcome(StrEnum):
    """What came of an attempt at a stage, or of a run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"
    KILLED = "killed"
    UNKNOWN = "unknown"


class StageRun(NamedTuple):
    """One attempt at a stage; what is not known (yet) is None. See `Spent` for what the numbers mean.

    `again` is whether another attempt may follow.
    """

    stage: str
    action: str = "run"
    attempt: int = 1
    outcome: Outcome = Outcome.UNKNOWN
    reasons: tuple[str, ...] = ()
    started: str | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    exit_status: int | None = None
    message: str | None = None
    again: bool = False


class RunFacts(NamedTuple):
    """What a record says: when the run began (UTC), what it came to, and what it did with stages, in order."""

    started: str | None
    doing: str
    outcome: Outcome
    seconds: float | None
    stages: tuple[StageRun, ...]


def log_file(folder: Path, stage: str) -> Path:
    """Return the log of the stage at an address, in the folder of a run."""
    return folder / f"{file_name(stage)}.log"


def project_of(data: bytes) -> str:
    """Return where the project that a run was of lies in its repository; `data` is the beginning of its record."""
    first = next(_facts(data.partition(b"\n")[0]), {})
    return _text(first, "project") or ""


def line(event: str, **facts: object) -> bytes:
    """Return one line of a record; a fact that is None is left out."""
    told = {"event": event, **{name: value for name, value in facts.items() if value is not None}}
    return json.dumps(told, ensure_ascii=True).encode() + b"\n"


def read_record(data: bytes, *, is_on: bool) -> RunFacts:
    """Return what the lines in `data` say; `is_on` is whether somebody still writes them."""
    started: str | None = None
    doing, seconds = "mlx run", None
    outcome = Outcome.RUNNING if is_on else Outcome.KILLED
    stages: dict[tuple[str, int], StageRun] = {}
    for fact in _facts(data):
        event, at = fact.get("event"), _text(fact, "at")
        if event == "run":
            started, doing = at, _text(fact, "doing") or doing
        elif event == "close":
            outcome, seconds = _outcome(fact), _number(fact, "seconds")
        elif (stage := _text(fact, "stage")) is not None:
            key = (stage, _whole(fact, "attempt") or 1)
            if event == "begin":
                action = _text(fact, "action") or "run"
                stages[key] = StageRun(stage, action, key[1], Outcome.RUNNING, _texts(fact, "reasons"), at)
            elif event == "end" and key in stages:
                stages[key] = _ended(stages[key], fact)
    still = outcome if outcome in (Outcome.RUNNING, Outcome.KILLED) else Outcome.INTERRUPTED
    return RunFacts(started, doing, outcome, seconds, tuple(_closed(stages.values(), still)))


def _closed(stages: Iterable[StageRun], still: Outcome) -> Iterator[StageRun]:
    for stage in stages:
        yield stage._replace(outcome=still) if stage.outcome is Outcome.RUNNING else stage


def _ended(begun: StageRun, fact: Mapping[str, object]) -> StageRun:
    return begun._replace(
        outcome=_outcome(fact),
        seconds=_number(fact, "seconds"),
        cpu_seconds=_number(fact, "cpu_seconds"),
        peak_memory=_whole(fact, "peak_memory"),
        exit_status=_whole(fact, "exit_status"),
        message=_text(fact, "message"),
        again=fact.get("again") is True,
    )


def _facts(data: bytes) -> Iterator[dict[str, object]]:
    for text in data.split(b"\n"):
        try:
            fact = json.loads(text)
        except (ValueError, RecursionError):  # torn by a kill, or nobody's
            continue
        if isinstance(fact, dict):
            yield fact


def _outcome(fact: Mapping[str, object]) -> Outcome:
    try:
        return Outcome(str(fact.get("outcome")))
    except ValueError:  # a later version's
        return Outcome.UNKNOWN


def _text(fact: Mapping[str, object], name: str) -> str | None:
    value = fact.get(name)
    return value if isinstance(value, str) else None


def _texts(fact: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = fact.get(name)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _number(fact: Mapping[str, object], name: str) -> float | None:
    value = fact.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e15 else None  # type: ignore[arg-type]  # it is a number


def _whole(fact: Mapping[str, object], name: str) -> int | None:
    value = fact.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None
