"""Reading how a stage is carried out: its `resources`, `mutex`, `timeout` and `retries`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlops_cli.documents import Fields, describe
from mlops_cli.records.conduct import MEMORY, PLAIN, Conduct
from mlops_cli.records.config import parse_duration
from mlops_cli.records.filling import ValueReader

KEYS = ("resources", "mutex", "timeout", "retries")

_COUNTER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGTP]i?)?B?\Z", re.ASCII)
_UNITS = {letter: 1000 ** (1 + power) for power, letter in enumerate("KMGTP")}
_BINARY_UNITS = {f"{letter}i": 1024 ** (1 + power) for power, letter in enumerate("KMGTP")}
_MOST_RETRIES = 100


def read_conduct(reader: ValueReader, fields: Fields) -> Conduct:
    """Return what the stage at `fields` says of how it is carried out; RecordError."""
    if not any(fields.has(key) for key in KEYS):
        return PLAIN
    retries, delay = _read_retries(reader, fields)
    return Conduct(
        resources=tuple(sorted(read_resources(reader, fields).items())),
        mutex=_read_mutex(reader, fields),
        timeout=_duration(reader, fields, "timeout") if fields.has("timeout") else None,
        retries=retries,
        delay=delay,
    )


def read_resources(reader: ValueReader, fields: Fields) -> dict[str, float]:
    """Return the mapping `resources` of a stage or a pipeline, with memory in bytes."""
    named = fields.mapping("resources")
    if named is None:
        return {}
    found: dict[str, float] = {}
    for name, raw in named.values.items():
        if not _COUNTER.match(name):
            raise named.error(f"`{name}` cannot be the name of a resource", name, "use letters, digits, `_` and `-`")
        value = reader.value(raw, (*named.at, name))
        found[name] = _size(named, value) if name == MEMORY else _amount(named, name, value)
    return found


def parse_amount(name: str, text: str) -> float:
    """Return how much of a resource a text says, memory in bytes; ValueError."""
    if not _COUNTER.match(name):
        raise ValueError(f"`{name}` cannot be the name of a resource")
    if name == MEMORY and (match := _SIZE.match(text)):
        amount = _bytes_of(match)
    else:
        amount = float(text) if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) else 0.0
    if not 0 < amount < float("inf"):
        raise ValueError(f"`{text}` is not an amount")
    return amount


def _bytes_of(match: re.Match[str]) -> float:
    unit = (match[2] or "").replace("k", "K")
    return float(match[1]) * ({**_UNITS, **_BINARY_UNITS}[unit] if unit else 1)


def _amount(fields: Fields, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise fields.error(f"`{name}` must be a number above 0, not {describe(value)}", name)
    return float(value)


def _size(fields: Fields, value: object) -> float:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return float(value)
    match = _SIZE.match(value) if isinstance(value, str) else None
    size = _bytes_of(match) if match else 0.0
    if not 0 < size < float("inf"):
        raise fields.error(
            f"`{MEMORY}` must be a size, not {describe(value)}", MEMORY, "such as `2GiB`, `500MB` or a number of bytes"
        )
    return size


def _read_mutex(reader: ValueReader, fields: Fields) -> tuple[str, ...]:
    if not fields.has("mutex"):
        return ()
    raw = fields.raw("mutex")
    if isinstance(raw, str) and not isinstance(reader.value(raw, (*fields.at, "mutex")), list):
        return (reader.text(raw, (*fields.at, "mutex")),)
    return tuple(dict.fromkeys(text for text, _ in reader.listed(fields, "mutex")))


def _read_retries(reader: ValueReader, fields: Fields) -> tuple[int, float]:
    """Return how many more attempts there are, and the seconds between: `retries: 2`, or with a delay as a mapping."""
    if not fields.has("retries"):
        return 0, 0.0
    raw = reader.value(fields.raw("retries"), (*fields.at, "retries"))
    if isinstance(raw, dict):
        told = Fields(fields.document, (*fields.at, "retries"))
        told.only(("times", "delay"))
        times = reader.value(told.raw("times"), (*told.at, "times"))
        delay = _duration(reader, told, "delay") if told.has("delay") else 0.0
        return _times(told, times, "times"), delay
    return _times(fields, raw, "retries"), 0.0


def _times(fields: Fields, value: object, key: str) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_RETRIES:
        hint = "`retries: 2`, or `retries: {times: 2, delay: 30s}`"
        raise fields.error(f"`{key}` must be a whole number up to {_MOST_RETRIES}, not {describe(value)}", key, hint)
    return value


def _duration(reader: ValueReader, fields: Fields, key: str) -> float:
    value = reader.value(fields.raw(key), (*fields.at, key))
    try:
        seconds = parse_duration(str(value)) if isinstance(value, str | int | float) and value is not True else -1
    except ValueError:
        seconds = -1
    if not seconds > 0 and not (key == "delay" and seconds == 0):
        raise fields.error(f"`{key}` must be a time, not {describe(value)}", key, "such as `90`, `30s`, `2h` or `1d`")
    return seconds


def merged(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Return what two pipelines together have of each resource: the smaller, where both say."""
    return {**one, **other, **{name: min(one[name], other[name]) for name in one.keys() & other.keys()}}
