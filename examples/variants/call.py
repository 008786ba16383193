"""Say where the samples, all together, differ from the genome.

    python call.py --least 5 data/genome.txt sorted/A.tsv sorted/B.tsv …

Writes calls.csv, a line for each base that most of at least so many reads tell otherwise, and metrics.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--least", type=int, required=True)
    parser.add_argument("genome", type=Path)
    parser.add_argument("samples", type=Path, nargs="+")
    args = parser.parse_args()

    genome = args.genome.read_text(encoding="utf-8").strip()
    told: list[Counter[str]] = [Counter() for _ in genome]
    for sample in args.samples:
        for line in sample.read_text(encoding="utf-8").splitlines():
            _, position, _, bases = line.split("\t")
            for place, base in enumerate(bases, start=int(position)):
                told[place][base] += 1

    calls = []
    for place, counts in enumerate(told):
        depth = counts.total()
        base, votes = max(counts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
        if depth >= args.least and base != genome[place] and votes > depth / 2:
            calls.append(f"{place},{genome[place]},{base},{votes},{depth}\n")
    Path("calls.csv").write_text("".join(["position,genome,samples,votes,depth\n", *calls]), encoding="utf-8")
    metrics = {
        "calls": len(calls),
        "depth": round(sum(map(Counter.total, told)) / len(genome), 2),
        "samples": len(args.samples),
    }
    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
