"""Vectors of images, and the images nearest to one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from hf_vit.extras import extra
from hf_vit.files import write_atomically
from hf_vit.inputs import find_images, load_config, read_images

OUTPUTS = (".parquet", ".npy")


@dataclass(frozen=True)
class Embeddings:
    """Vectors (images, D) float32, the names of their files, and the model and revision that made them."""

    files: list[str]
    vectors: np.ndarray[Any, Any]
    model: str
    revision: str | None = None


def embed(
    model: str,
    inputs: Sequence[str],
    *,
    batch_size: int = 16,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Embeddings:
    """The pooled vectors of images, as a model's classifier would get them.

    Args:
        model: a Vision Transformer or another model with a `pooler_output`, its id on the Hub or its folder.
        inputs: files, folders, patterns and addresses, see `hf_vit.inputs.find_images`.

    Raises:
        ValueError: no image is found or can be read, or the model takes no images or pools none by weights it has.
    """
    names = find_images(inputs)
    config = load_config(model, revision, trust_remote_code)
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "image_size"):
        raise ValueError(f"model must be one that pools images, {model!r} is of type {config.model_type!r}")
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded, info = AutoModel.from_pretrained(model, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise ValueError(f"model must hold the weights that pool, {model!r} lacks {', '.join(info['missing_keys'])}")
    processor = AutoImageProcessor.from_pretrained(model, **options)
    files: list[str] = []
    vectors = []
    for batch, images in read_images(names, batch_size):
        with torch.inference_mode():
            pooled = loaded.eval()(**processor(images, return_tensors="pt")).pooler_output
        if pooled is None:
            raise ValueError(f"model must be one that pools images, {model!r} has no pooler_output")
        files += batch
        vectors.append(pooled.flatten(1).float().numpy())
    return Embeddings(files, np.concatenate(vectors), model, revision)


def write_embeddings(embeddings: Embeddings, output: Path) -> Path:
    """The file of all vectors: `.parquet` with the columns `file` and `embedding`, `.npy` with a `.json` beside it."""
    about = {"model": embeddings.model, "revision": embeddings.revision}
    content = io.BytesIO()
    if output.suffix == ".npy":
        names = json.dumps({**about, "files": embeddings.files}, ensure_ascii=False, indent=1)
        write_atomically(output.with_suffix(".json"), names.encode())
        np.save(content, embeddings.vectors)
        return write_atomically(output, content.getvalue())
    with extra("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    flat = pa.array(embeddings.vectors.ravel())
    columns = {
        "file": pa.array(embeddings.files),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.vectors.shape[1]),
    }
    table = pa.table(columns).replace_schema_metadata({"hf_vit": json.dumps(about)})
    pq.write_table(table, content)
    return write_atomically(output, content.getvalue())


def read_embeddings(path: Path) -> Embeddings:
    """Embeddings that `write_embeddings` wrote.

    Raises:
        ValueError: the file is not there, or holds something else.
    """
    if path.suffix not in OUTPUTS or not path.is_file():
        raise ValueError(f"file must be one that `hf-vit embed` wrote, .parquet or .npy, got {str(path)!r}")
    try:
        if path.suffix == ".npy":
            about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            return Embeddings(about["files"], np.load(path, allow_pickle=False), about["model"], about["revision"])
        with extra("train"):
            import pyarrow.parquet as pq
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"hf_vit"])
        vectors = np.stack(table["embedding"].to_numpy())
        return Embeddings(table["file"].to_pylist(), vectors, about["model"], about["revision"])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"file must be one that `hf-vit embed` wrote, {str(path)!r} is not: {error}") from None


def search(
    embeddings: Embeddings, image: str, *, top_k: int = 5, trust_remote_code: bool = False
) -> list[tuple[str, float]]:
    """The images nearest to one, by the cosine of their vectors: names and cosines from -1 to 1, the nearest first.

    Raises:
        ValueError: top_k is below 1, or the image cannot be read.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    with extra("train"):
        from sklearn.neighbors import NearestNeighbors
    query = embed(embeddings.model, [image], revision=embeddings.revision, trust_remote_code=trust_remote_code)
    neighbours = NearestNeighbors(n_neighbors=min(top_k, len(embeddings.files)), metric="cosine")
    distances, indices = neighbours.fit(embeddings.vectors).kneighbors(query.vectors[:1])
    return [(embeddings.files[index], 1 - float(distance)) for index, distance in zip(indices[0], distances[0])]
