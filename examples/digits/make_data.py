"""Write scikit-learn's handwritten digits as one image file each, and their labels as CSV.

    data/raw/0000.pgm … data/raw/1796.pgm     8 x 8 grey pixels, from 0 (paper) to 16 (ink)
    data/labels.csv                           file,label

The images come inside scikit-learn, so nothing is downloaded, and every run writes the same bytes. PGM is the plainest
image format there is: a line of text that says how large the picture is, then one byte for each pixel.
"""

from __future__ import annotations

import csv
from pathlib import Path

from sklearn.datasets import load_digits

DATA = Path("data")


def main() -> None:
    digits = load_digits()
    raw = DATA / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    with (DATA / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        labels = csv.writer(file, lineterminator="\n")
        labels.writerow(["file", "label"])
        for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            name = f"{index:04}.pgm"
            (raw / name).write_bytes(b"P5\n8 8\n16\n" + image.astype("uint8").tobytes())
            labels.writerow([name, label])
    print(f"wrote {len(digits.target)} images to {raw} and their labels to {DATA / 'labels.csv'}")


if __name__ == "__main__":
    main()
