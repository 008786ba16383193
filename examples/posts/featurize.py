"""Turn the text of each post into numbers: how often it has each of the words and pairs of words that are common.

Reads data/prepared and the `featurize` parameters; writes data/features/train.joblib and data/features/test.joblib,
each with `posts` (a row a post, weighed by how rare a word is) and `labels`.
"""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer

PREPARED = Path("data/prepared")
FEATURES = Path("data/features")


def read(part: str) -> tuple[list[str], np.ndarray]:
    """Return the texts of one part, and their labels."""
    with (PREPARED / f"{part}.tsv").open(encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    return [text for _, _, text in rows], np.array([int(label) for _, label, _ in rows])


def main() -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["featurize"]
    vectorizer = TfidfVectorizer(max_features=params["max_features"], ngram_range=(1, params["ngrams"]))
    FEATURES.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        texts, labels = read(part)
        # What is common is learnt from the posts for training only.
        posts = vectorizer.fit_transform(texts) if part == "train" else vectorizer.transform(texts)
        joblib.dump({"posts": posts, "labels": labels}, FEATURES / f"{part}.joblib")
        print(f"{part}: {posts.shape[0]} posts, {posts.shape[1]} features")


if __name__ == "__main__":
    main()
