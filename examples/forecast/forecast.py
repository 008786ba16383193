"""Forecast each day's temperature from the days before it, and write down how far off that is."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path


def last(days: Sequence[float]) -> float:
    """Tomorrow is as today."""
    return days[-1]


def mean(days: Sequence[float]) -> float:
    """Tomorrow is as these days were on average."""
    return sum(days) / len(days)


def trend(days: Sequence[float]) -> float:
    """Tomorrow lies on the line that fits these days best (least squares)."""
    middle = (len(days) - 1) / 2
    slope = sum((i - middle) * day for i, day in enumerate(days)) / sum((i - middle) ** 2 for i in range(len(days)))
    return mean(days) + slope * (len(days) - middle)


METHODS: dict[str, Callable[[Sequence[float]], float]] = {"last": last, "mean": mean, "trend": trend}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--from-day", type=int, required=True)
    args = parser.parse_args()

    with Path("temperatures.csv").open(encoding="utf-8", newline="") as stream:
        days = [float(row["celsius"]) for row in csv.DictReader(stream)]
    off = [
        abs(METHODS[args.method](days[day - args.window : day]) - days[day]) for day in range(args.from_day, len(days))
    ]

    metrics = {"mae": round(sum(off) / len(off), 3), "worst": round(max(off), 3), "days": len(off)}
    path = Path(f"metrics/{args.method}-{args.window}.json")
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
