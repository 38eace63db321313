"""Measure where an image-to-text model looks, for its card.

Executed in a process of its own, see `hf_vit.cards.measure`: the package is imported only once the folder's code has
been loaded, for it would take its place.
"""

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor


def words_of(pieces: list[str]) -> list[list[int]]:
    """Indices of the tokens of each word: a word goes on until a token begins with a space; digits stand alone."""
    words: list[list[int]] = []
    for index, piece in enumerate(pieces):
        goes_on = index and not piece[:1].isspace() and not piece[:1].isdigit()
        if words and goes_on:
            words[-1].append(index)
        else:
            words.append([index])
    return words


def measure(repo_id: str, attended: list[str]) -> dict:
    """The attention of the decoder's last layer to the patches of each image, mean over its heads and over the tokens
    of each word: (words, rows, columns)."""
    processor = AutoImageProcessor.from_pretrained(repo_id, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForImageTextToText.from_pretrained(repo_id, **options).eval()
    vision = model.config.vision_config
    rows = []
    for file in attended:
        pixels = processor(Image.open(Path(repo_id, file)), return_tensors="pt")["pixel_values"]
        ids = model.generate(pixels, num_beams=1, do_sample=False)[0, 1:].tolist()
        if all(token in tokenizer.all_special_ids for token in ids):
            continue
        with torch.no_grad():
            outputs = model(pixels, labels=torch.tensor([ids]), output_attentions=True)
        weights = outputs.cross_attentions[-1][0].mean(0)[:, vision.num_prefix_tokens :]  # (tokens, patches)
        maps = weights.unflatten(1, vision.grid_size)
        shown = [index for index, token in enumerate(ids) if token not in tokenizer.all_special_ids]
        pieces, maps = [str(tokenizer.decode([ids[index]])) for index in shown], maps[shown]
        words = words_of(pieces)
        values = [[[float(f"{v:.3g}") for v in line] for line in maps[word].mean(0).tolist()] for word in words]
        texts = ["".join(pieces[i] for i in word).strip() or "␣" for word in words]
        rows.append({"file": file, "words": texts, "maps": values})
    return {"cross_attention": rows}
