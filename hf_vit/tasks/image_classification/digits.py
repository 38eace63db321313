"""The digits of scikit-learn as a data set."""

from __future__ import annotations

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image
from PIL import Image as PILImage
from sklearn.model_selection import train_test_split


def load_sklearn_digits() -> DatasetDict:
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey, in a fixed stratified 80/20 split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 -> 0..255
    features = datasets.Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in range(10)])})
    rows = train_test_split(np.arange(len(pixels)), test_size=0.2, stratify=digits.target, random_state=0)
    info = datasets.DatasetInfo(license="cc-by-4.0", features=features)  # of the UCI repository, where they are from
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [PILImage.fromarray(pixels[i]) for i in index], "label": digits.target[index]},
                features,
                info,
            )
            for split, index in zip(("train", "test"), rows)
        }
    )
