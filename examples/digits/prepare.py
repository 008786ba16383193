"""Read the image files and split them into what a model learns from and what it is tested on.

Reads data/raw, data/labels.csv and the `split` parameters; writes data/prepared/train.npz and data/prepared/test.npz,
each with `images` (one row of 64 pixels per picture, from 0 to 1) and `labels`.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import yaml

RAW = Path("data/raw")
LABELS = Path("data/labels.csv")
PREPARED = Path("data/prepared")


def read_pgm(path: Path) -> np.ndarray:
    """Return the pixels of a binary PGM file as one row, scaled to 0 … 1."""
    magic, size, brightest, pixels = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    if magic != b"P5" or len(pixels) != width * height:
        raise SystemExit(f"{path} is not a whole binary PGM file")
    return np.frombuffer(pixels, dtype=np.uint8) / int(brightest)


def main() -> None:
    split = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["split"]
    # The labels, not the folder, give the order: a file system lists its files in an order of its own.
    with LABELS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    images = np.stack([read_pgm(RAW / row["file"]) for row in rows])
    labels = np.array([int(row["label"]) for row in rows])

    # A generator of our own, made from a parameter: the same seed gives the same split in every process.
    order = np.random.default_rng(split["seed"]).permutation(len(rows))
    tested = round(len(rows) * split["test"])
    PREPARED.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("test", order[:tested]), ("train", order[tested:])):
        # NumPy gives each member of an .npz the same fixed date, so equal arrays make equal bytes.
        np.savez(PREPARED / f"{name}.npz", images=images[chosen], labels=labels[chosen])
        print(f"{name}: {len(chosen)} images")


if __name__ == "__main__":
    main()
