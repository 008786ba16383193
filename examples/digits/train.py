"""Fit one model to the training images.

Reads data/prepared/train.npz and the parameters under `train.<model>`; writes models/<model>.joblib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import joblib
import numpy as np
import yaml
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

# The keys are what `--model` takes; the parameters under the same name in params.yaml become the arguments.
MODELS = {"logistic": LogisticRegression, "forest": RandomForestClassifier}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, required=True)
    name = parser.parse_args().model

    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["train"][name]
    with np.load("data/prepared/train.npz") as train:
        model = MODELS[name](**params).fit(train["images"], train["labels"])
        print(f"fitted {name} to {len(train['labels'])} images with {params}")

    path = Path("models") / f"{name}.joblib"
    path.parent.mkdir(exist_ok=True)
    joblib.dump(model, path)


if __name__ == "__main__":
    main()
