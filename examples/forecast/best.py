"""Say which forecast has the least of each measure that is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path("metrics").glob("*.json"))}
    best = {measure: min(found, key=lambda name: found[name][measure]) for measure in sys.argv[1:]}
    values = {measure: {"least": found[name][measure], "of": name} for measure, name in best.items()}
    Path("best.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
