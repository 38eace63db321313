"""A saved classifier and the images that it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit.tasks.image_classification import figures
from hf_vit.tasks.image_classification.arguments import ScoredDataArguments
from hf_vit.tasks.image_classification.augment import EvaluationTransform
from hf_vit.tasks.image_classification.calibration import adjusted
from hf_vit.tasks.image_classification.data import LabelledImages, load_labelled_split
from hf_vit.tasks.image_classification.evaluation import ClassificationEvaluator
from hf_vit.tasks.image_classification.losses import MULTI_LABEL
from hf_vit.tasks.image_classification.models import num_channels_of
from hf_vit.tasks.image_classification.multi_label_evaluation import MultiLabelEvaluator
from hf_vit.tasks.image_classification.review import review_page
from hf_vit.tasks.image_classification.views import ImageView
from hf_vit.tasks.task import Assessment, data_loader
from hf_vit.vision.processors import InputFormat


def assessment(arguments: Any) -> Assessment:
    """The model and its images, which go through its own processor; see `Task.assess`."""
    score = arguments.score
    origin = {"revision": score.model_revision, "trust_remote_code": score.trust_remote_code}
    model = AutoModelForImageClassification.from_pretrained(score.model_name_or_path, **origin)
    processor = AutoImageProcessor.from_pretrained(score.model_name_or_path, **origin)
    # Timm's, for one; and EfficientNet's takes a step after the normalization.
    if not isinstance(processor, TorchvisionBackend) or getattr(processor, "include_top", False):
        processor = InputFormat.of(processor).processor()
    data = load_scored_images(model, arguments.data, score.split, arguments.classes.class_order)
    images = data.splits[score.split]
    if data.is_multi_label:
        given = [name for name, value in vars(arguments.test_time).items() if value]
        if given:
            raise ValueError(f"--{given[0]} is of one label an image")
        thresholds = getattr(model.config, "label_thresholds", None)
        several: Any = MultiLabelEvaluator(images, data.class_names, processor, final=True, thresholds=thresholds)
    views = ImageView(images, EvaluationTransform(processor), num_channels=num_channels_of(model))
    evaluator = ClassificationEvaluator(images, data.class_names, processor, final=True)

    def draw(metrics: Mapping[str, Any]) -> dict[str, bytes]:
        drawn = ("confusion_matrix", "calibration")
        facts = SimpleNamespace(class_names=data.class_names, **{name: metrics[name] for name in drawn})
        pictures = {
            "confusion_matrix.png": figures.confusion_matrix(facts),
            "reliability.png": figures.reliability_diagram(facts),
        }
        if arguments.test_time.top_losses:
            rows = evaluator.rows()
            pictures["top_losses.html"] = review_page(images, data.class_names, rows, arguments.test_time.top_losses)
        return {name: picture for name, picture in pictures.items() if picture is not None}

    loader = data_loader(views, arguments.data, batch_size=score.per_device_eval_batch_size)
    if data.is_multi_label:
        return Assessment(model, loader, several, data.describe())
    model = adjusted(model, arguments.test_time)
    return Assessment(model, loader, evaluator, data.describe(), draw)


def load_scored_images(
    model: PreTrainedModel, arguments: ScoredDataArguments, split: str, class_order: str
) -> LabelledImages:
    """A split, its labels as the model's indices.

    Args:
        class_order: "name": the data's classes bear the names of the model's; "index": they come in the same order.

    Raises:
        ValueError: the data has classes that the model does not know, or as many as it does not have.
    """
    config: Any = model.config
    class_names = [config.id2label[index] for index in range(config.num_labels)]
    several = {"is_multi_label": config.problem_type == MULTI_LABEL}
    if class_order == "index":
        data = load_labelled_split(arguments, split, None, **several)
        if len(data.class_names) != len(class_names):
            raise ValueError(
                f"--class_order index: the data has {len(data.class_names)} classes, the model {len(class_names)}"
            )
        return data
    if len(set(class_names)) < len(class_names):
        raise ValueError("the model has classes of the same name: --class_order index")
    return load_labelled_split(arguments, split, class_names, **several)
