"""Answers of a model on the page, by the task of its pipeline: what goes in, what comes out, and what makes the one of
the other."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import pipeline

from hf_vit.drawing import draw_objects
from hf_vit.explain import alignment
from hf_vit.explain.explanation import is_explained
from hf_vit.predict import as_json, task_of, threshold_of

MAX_PIXELS = 40_000_000  # of an image that is looked at
MAX_CHARACTERS = 20_000  # of a text that is translated


@dataclass(frozen=True)
class Model:
    """A model that is ready to answer.

    Args:
        name: as it was asked for.
        task: of transformers' pipelines.
        pipe: the pipeline.
        threshold: the least score of an object, to begin with.
    """

    name: str
    task: str
    pipe: Any
    threshold: float = 0.5

    @property
    def class_names(self) -> list[str]:
        """The classes of a classifier, in their order."""
        config = self.pipe.model.config
        return [config.id2label[index] for index in range(config.num_labels)]


def load(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Model:
    """The model of a folder or of the Hub.

    Raises:
        ValueError: it is of a task that is not known here, or needs code of its own that is not trusted.
    """
    task = task_of(name, revision, trust_remote_code)
    if task == "translation":
        from hf_vit.translate import load_translator

        return Model(name, task, load_translator(name, revision))
    if task == "image-to-text":
        from hf_vit.read import load_reader

        return Model(name, task, load_reader(name, revision))
    pipe: Any = pipeline(task, model=name, revision=revision, trust_remote_code=trust_remote_code)  # type: ignore[call-overload]
    return Model(name, task, pipe, threshold_of(name))


def check_image(image: Image.Image | None) -> Image.Image:
    """Raises `ValueError` where there is no image, or one too large to be looked at."""
    if image is None:
        raise ValueError("choose an image first")
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"an image has {MAX_PIXELS // 10**6} megapixels at most, got {image.width} x {image.height}")
    return image.convert("RGB")


def classify(model: Model, image: Image.Image | None) -> dict[str, float]:
    """Classes and their probabilities, all of them."""
    found = model.pipe(check_image(image), top_k=len(model.class_names))
    return {each["label"]: float(each["score"]) for each in found}


def explains(model: Model) -> bool:
    """Whether there are heat maps of a classifier's classes."""
    return is_explained(model.pipe.model)


def heat_map(model: Model, image: Image.Image | None, class_name: str) -> Image.Image:
    """What speaks for a class, over the image: exact evidence in orange, that against it in purple, or relevance."""
    from hf_vit.explain.picture import draw_heat_map

    return draw_heat_map(model.pipe.model, model.pipe.image_processor, check_image(image), class_name)


def find(model: Model, image: Image.Image | None, threshold: float) -> tuple[Image.Image, list[list[Any]]]:
    """The image with the boxes or masks of what was found, and a row for each: label and score."""
    image = check_image(image)
    found = [as_json(each) for each in model.pipe(image, threshold=threshold)]
    rows = [[each["label"], round(float(each["score"]), 3)] for each in sorted(found, key=lambda row: -row["score"])]
    return draw_objects(image, found), rows


def translate(model: Model, text: str, count: int) -> list[list[Any]]:
    """A row for each translation: the text's line, the translation and its score.

    Raises:
        ValueError: the text is too long.
    """
    from hf_vit.translate import scores_of

    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a text has {MAX_CHARACTERS:,} characters at most, got {len(text):,}")
    rows: list[list[Any]] = []
    beams = max(model.pipe.model.generation_config.num_beams or 1, count)
    for line in filter(str.strip, text.splitlines()):
        found = model.pipe(line, num_beams=beams, num_return_sequences=count)
        answers = [each["translation_text"] for each in found]
        scores = scores_of(model.pipe, line, answers)
        rows += [[line, answer, round(score, 3)] for answer, score in zip(answers, scores)]
    return rows


def read(model: Model, image: Image.Image | None, count: int) -> tuple[list[list[Any]], Image.Image]:
    """A row for each text of an image, with its score, and the picture of where the decoder looked for the tokens that
    it writes greedily."""
    from hf_vit.explain.picture import draw_reading
    from hf_vit.explain.reading import read_image
    from hf_vit.read import read

    image = check_image(image)
    rows = [[each["generated_text"], round(each["score"], 3)] for each in read(model.pipe, [image], count)[0]]
    return rows, Image.open(io.BytesIO(draw_reading(read_image(model.pipe, image))))


def align(model: Model, text: str, translation: str) -> Image.Image:
    """The picture of what a translator read for each token that it wrote."""
    from hf_vit.explain.picture import draw_alignment

    pipe = model.pipe
    found = alignment(pipe.model, pipe.tokenizer, text, translation, pipe.target_tokenizer)
    return Image.open(io.BytesIO(draw_alignment(found)))
