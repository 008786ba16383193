"""Fit a random forest to the posts for training.

Reads data/features/train.joblib and the `train` parameters; writes model.joblib.
"""

from __future__ import annotations

from pathlib import Path

import joblib
import yaml
from sklearn.ensemble import RandomForestClassifier


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["train"]
    train = joblib.load("data/features/train.joblib")
    forest = RandomForestClassifier(
        n_estimators=params["n_est"], min_samples_split=params["min_split"], random_state=params["seed"]
    )
    joblib.dump(forest.fit(train["posts"], train["labels"]), "model.joblib")
    print(f"fitted {params['n_est']} trees to {len(train['labels'])} posts")


if __name__ == "__main__":
    main()
