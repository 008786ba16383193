"""Tell three kinds of wine apart by their chemistry, and write down the model and how good it is."""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import yaml
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    features, kinds = load_wine(return_X_y=True)
    # Every draw has its seed in params.yaml: the same parameters give the same split, model and metrics.
    train_x, test_x, train_y, test_y = train_test_split(features, kinds, stratify=kinds, **params["split"])

    model = make_pipeline(StandardScaler(), LogisticRegression(**params["train"])).fit(train_x, train_y)
    joblib.dump(model, "model.joblib")

    metrics = {"accuracy": round(float(accuracy_score(test_y, model.predict(test_x))), 4), "n": len(test_y)}
    Path("metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
