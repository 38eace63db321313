"""A page of the samples that a classifier finds hardest, and of labels that it has reason to doubt."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_vit.vision.decoding import decode

_SIDE = 160  # pixels of a picture on the page
_STYLE = (
    "body{font-family:sans-serif;margin:2em}figure{display:inline-block;width:176px;margin:4px;vertical-align:top}"
    "figcaption{font-size:12px;overflow-wrap:anywhere}img{max-width:160px}"
)


def suspect_labels(rows: np.ndarray) -> np.ndarray:
    """Positions of rows whose label the model doubts, the surest doubt first: it takes the image for another class,
    with at least the confidence that it has on average in images that bear that class (confident learning, arXiv
    1911.00068, with the predicted class alone).

    Args:
        rows: (N, 5) of each sample its index, label, prediction, confidence and the loss of its label.
    """
    labels, predictions, confidences = rows[:, 1], rows[:, 2], rows[:, 3]
    usual = np.full(int(max(labels.max(), predictions.max())) + 1, np.inf)
    own = np.exp(-rows[:, 4])  # probability of the label
    for label in np.unique(labels).astype(int):
        usual[label] = own[labels == label].mean()
    found = np.flatnonzero((predictions != labels) & (confidences >= usual[predictions.astype(int)]))
    return found[np.argsort(-confidences[found], kind="stable")]


def review_page(images: Dataset, class_names: Sequence[str], rows: np.ndarray, count: int) -> bytes:
    """HTML that needs no other file: `count` samples of the highest loss, and as many suspect labels.

    Args:
        rows: as those of `suspect_labels`, in the split's order.
    """
    suspects = suspect_labels(rows)
    parts = {
        "Highest losses": np.argsort(-rows[:, 4], kind="stable")[:count],
        f"Suspect labels ({len(suspects):,} of {len(rows):,})": suspects[:count],
    }
    body = "".join(
        f"<h2>{html.escape(title)}</h2>" + "".join(_figure(images, class_names, row) for row in rows[chosen])
        for title, chosen in parts.items()
    )
    head = f'<!doctype html><meta charset="utf-8"><title>Samples to look at</title><style>{_STYLE}</style>'
    return f"{head}<h1>Samples to look at</h1>{body}\n".encode()


def _figure(images: Dataset, class_names: Sequence[str], row: np.ndarray) -> str:
    index, label, prediction = row[:3].astype(int)
    image = images[int(index)]["image"]
    picture: Any = decode(image, int(index)).convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    name = (image or {}).get("path") or f"sample {index}"
    told = (
        f"{name}: labelled {class_names[label]}, taken for {class_names[prediction]} ({row[3]:.0%}), loss {row[4]:.2f}"
    )
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{data}"><figcaption>{html.escape(told)}</figcaption></figure>'
