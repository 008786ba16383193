"""What is told of work that takes long, where nobody sees a bar: a line every ten seconds."""

from __future__ import annotations

import time

import pytest

from mlops_cli.cli.bars import TerminalReporter


@pytest.mark.parametrize(
    ("total", "unit", "amount", "seconds", "line"),
    [
        (20_000, "files", 5_000, 10.0, "sending: 5,000 of 20,000 files, about 30 s left"),
        (None, "files", 5_000, 10.0, "sending: 5,000 files"),
        (12_000_000_000, "bytes", 1_500_000_000, 60.0, "sending: 1.5 GB of 12.0 GB, about 7 min left"),
        (1_000, "bytes", 1_000, 11.0, "sending: 1.0 kB of 1.0 kB"),
        (100, "files", 120, 11.0, "sending: 120 of 100 files"),
        (20_000, "files", 0, 11.0, "sending: 0 of 20,000 files"),
        (20_000, "files", 5_000, 9.0, ""),
    ],
)
def test_a_line_tells_how_much_is_done_and_how_long_the_rest_takes(
    total: int | None,
    unit: str,
    amount: int,
    seconds: float,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = TerminalReporter(print, silent=False, color=False)
    reporter.start("sending", total, unit)
    now += seconds
    reporter.advance(amount)
    reporter.advance(0)  # not before ten more seconds

    assert capfd.readouterr().err == (line and f"{line}\n")


def test_a_silent_reporter_tells_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    reporter = TerminalReporter(print, silent=True, color=False)
    reporter.start("sending", 10, "files")
    now += 60
    reporter.advance(5)

    assert capfd.readouterr().err == ""
