"""Say how well the model tells posts about R from others, on those it has learnt from and on those it has not seen.

Reads model.joblib and data/features; writes metrics/evaluation.json (numbers to compare), plots/precision.csv and
plots/roc.csv (curves over all thresholds), and plots/confusion.csv (what each post is, and what it is taken for).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import joblib
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

METRICS, PLOTS = Path("metrics"), Path("plots")


def write_table(name: str, head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> None:
    PLOTS.mkdir(exist_ok=True)
    with (PLOTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows([f"{each:.4f}" if isinstance(each, float) else each for each in row] for row in rows)


def main() -> None:
    model = joblib.load("model.joblib")
    values: dict[str, dict[str, float]] = {"average_precision": {}, "roc_auc": {}}
    for part in ("train", "test"):
        features = joblib.load(f"data/features/{part}.joblib")
        labels, likely = features["labels"], model.predict_proba(features["posts"])[:, 1]
        values["average_precision"][part] = round(float(average_precision_score(labels, likely)), 4)
        values["roc_auc"][part] = round(float(roc_auc_score(labels, likely)), 4)

    # What is left in the variables is of the posts for testing.
    precision, recall, _ = precision_recall_curve(labels, likely)
    write_table("precision", ("recall", "precision"), zip(recall.tolist(), precision.tolist(), strict=True))
    false, true, _ = roc_curve(labels, likely)
    write_table("roc", ("false_positives", "true_positives"), zip(false.tolist(), true.tolist(), strict=True))
    taken = (likely >= 0.5).astype(int)
    write_table("confusion", ("actual", "predicted"), zip(labels.tolist(), taken.tolist(), strict=True))

    METRICS.mkdir(exist_ok=True)
    (METRICS / "evaluation.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(values)


if __name__ == "__main__":
    main()
