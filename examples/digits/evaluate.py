"""Say how good one model is on images that it has not seen.

Reads data/prepared/test.npz and models/<model>.joblib; writes metrics/<model>.json (numbers to compare) and
plots/<model>.csv (how well each digit is recognised).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import joblib
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    name = parser.parse_args().model

    model = joblib.load(Path("models") / f"{name}.joblib")
    with np.load("data/prepared/test.npz") as test:
        images, labels = test["images"], test["labels"]
    predicted = model.predict(images)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=0)

    # Rounded: digits past the fourth say nothing about 449 images, and would only make differences harder to read.
    metrics = {
        "accuracy": round(float(accuracy_score(labels, predicted)), 4),
        "macro_f1": round(float(f1.mean()), 4),
        "n": len(labels),
    }
    path = Path("metrics") / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    path = Path("plots") / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["digit", "precision", "recall"])
        for digit in range(10):
            rows.writerow([digit, f"{precision[digit]:.4f}", f"{recall[digit]:.4f}"])
    print(f"{name}: {metrics}")


if __name__ == "__main__":
    main()
