"""Write a short genome, and what a sequencing machine might have read of three samples of it.

    data/genome.txt          2,000 bases, on one line
    data/samples/A.tsv       name and bases of each read; also of B and C
    data/truth.csv           where the samples differ from the genome: what `calls.csv` should come to

A read is 50 bases from anywhere; about one base in two hundred is read wrongly. Every run writes the same bytes.
"""

from __future__ import annotations

import random
from pathlib import Path

DATA = Path("data")
LENGTH, READS, READ_LENGTH, VARIANTS = 2000, 300, 50, 8


def other(chance: random.Random, base: str) -> str:
    return chance.choice([each for each in "ACGT" if each != base])


def main() -> None:
    chance = random.Random(4)
    genome = chance.choices("ACGT", k=LENGTH)
    varied = [*genome]
    places = sorted(chance.sample(range(100, LENGTH - 100), VARIANTS))
    for place in places:
        varied[place] = other(chance, genome[place])

    (DATA / "samples").mkdir(parents=True, exist_ok=True)
    (DATA / "genome.txt").write_text("".join(genome) + "\n", encoding="utf-8")
    truth = [f"{place},{genome[place]},{varied[place]}\n" for place in places]
    (DATA / "truth.csv").write_text("".join(["position,genome,samples\n", *truth]), encoding="utf-8")
    for sample in "ABC":
        reads = []
        for number in range(READS):
            start = chance.randrange(LENGTH - READ_LENGTH)
            bases = [other(chance, b) if chance.random() < 0.005 else b for b in varied[start : start + READ_LENGTH]]
            reads.append(f"{sample}{number:03}\t{''.join(bases)}\n")
        (DATA / "samples" / f"{sample}.tsv").write_text("".join(reads), encoding="utf-8")
    print(f"wrote {LENGTH} bases, {VARIANTS} of them varied, and {READS} reads of each of three samples")


if __name__ == "__main__":
    main()
