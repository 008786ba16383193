"""Split the posts into what a model learns from and what it is tested on.

Reads data/data.xml and the `prepare` parameters; writes data/prepared/train.tsv and data/prepared/test.tsv, each with a
line a post: its id, 1 if it is about R or else 0, and its text.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import yaml

PREPARED = Path("data/prepared")


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["prepare"]
    chance = random.Random(params["seed"])
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row in ET.parse("data/data.xml").getroot():
        text = re.sub(r"<[^>]+>|\s+", " ", f"{row.attrib['Title']} {row.attrib['Body']}").strip()
        about_r = int("<r>" in row.attrib["Tags"])
        part = "test" if chance.random() < params["split"] else "train"
        lines[part].append(f"{row.attrib['Id']}\t{about_r}\t{text}\n")

    PREPARED.mkdir(parents=True, exist_ok=True)
    for part, written in lines.items():
        (PREPARED / f"{part}.tsv").write_text("".join(written), encoding="utf-8")
        print(f"{part}: {len(written)} posts")


if __name__ == "__main__":
    main()
