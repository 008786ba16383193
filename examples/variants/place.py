"""Find the place in the genome that each read of one sample comes from.

    python place.py data/genome.txt data/samples/A.tsv > placed/A.tsv

Writes name, position, number of differences and bases, in the order of the reads. One that fits nowhere is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

SEED = 12  # so many bases in a row must be equal, at the beginning, in the middle or at the end


def main() -> None:
    genome, reads = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    genome = genome.strip()
    index: dict[str, list[int]] = {}
    for place in range(len(genome) - SEED + 1):
        index.setdefault(genome[place : place + SEED], []).append(place)

    for line in reads.splitlines():
        name, bases = line.split("\t")
        found = []
        for offset in (0, len(bases) // 2, len(bases) - SEED):
            for place in index.get(bases[offset : offset + SEED], ()):
                there = genome[place - offset : place - offset + len(bases)]
                if place >= offset and len(there) == len(bases):
                    found.append((sum(a != b for a, b in zip(bases, there, strict=True)), place - offset))
        if found and min(found)[0] <= len(bases) // 10:
            differences, position = min(found)
            print(name, position, differences, bases, sep="\t")


if __name__ == "__main__":
    main()
