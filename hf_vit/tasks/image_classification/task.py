"""Image classification: labelled images, any AutoModelForImageClassification, cross entropy, accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from hf_vit import HfViTConfig
from hf_vit.models.losses import distillation_loss, token_labeling_loss
from hf_vit.tasks.image_classification.annotator import Annotator
from hf_vit.tasks.image_classification.arguments import (
    ClassOrderArguments,
    ImageClassificationArguments,
    ScoredDataArguments,
    TestTimeArguments,
)
from hf_vit.tasks.image_classification.augment import (
    BatchMix,
    EvaluationTransform,
    TrainTransform,
)
from hf_vit.tasks.image_classification.baselines import frozen_start
from hf_vit.tasks.image_classification.calibration import LogitsEvaluator, fit_temperature
from hf_vit.tasks.image_classification.data import (
    MOST_NAMED,
    LabelledImages,
    class_mapping,
    load_labelled_images,
)
from hf_vit.tasks.image_classification.distillation import TeacherEnsemble
from hf_vit.tasks.image_classification.evaluation import ClassificationEvaluator
from hf_vit.tasks.image_classification.imbalance import rarity
from hf_vit.tasks.image_classification.label_loss import build_label_loss, check_multi_label
from hf_vit.tasks.image_classification.metrics import head_logits
from hf_vit.tasks.image_classification.models import (
    build_model,
    build_processor,
    describe_processor,
    head_parameters,
    num_channels_of,
)
from hf_vit.tasks.image_classification.multi_label_evaluation import MultiLabelEvaluator, best_thresholds
from hf_vit.tasks.image_classification.score_maps import DrawnLabels, KeptScores, WholeImages, kept_scores
from hf_vit.tasks.image_classification.scoring import assessment
from hf_vit.tasks.image_classification.streaming import ImageStream, load_streamed_images
from hf_vit.tasks.image_classification.teacher_cache import cached_logits
from hf_vit.tasks.image_classification.token_labels import TokenLabeling, is_on
from hf_vit.tasks.image_classification.views import ImageView
from hf_vit.tasks.lora import add_adapters, merged
from hf_vit.tasks.task import Assessment, Batch, Evaluator, StepOutput, Task, data_loader
from hf_vit.trainer.sampler import BalancedBatchSampler, EpochBatchSampler
from hf_vit.vision.processors import normalize
from hf_vit.words import listed


class ImageClassification(Task):
    """The task `image_classification`."""

    name = "image_classification"
    has_forecast = True
    scoring_groups: ClassVar = {
        "data": ScoredDataArguments,
        "classes": ClassOrderArguments,
        "test_time": TestTimeArguments,
    }
    sample_unit = "images"
    arguments: ImageClassificationArguments
    data: LabelledImages

    def __init__(self, arguments: ImageClassificationArguments):
        self.arguments = arguments
        self.seed = arguments.run.seed
        self.is_multi_label = arguments.loss.is_multi_label
        self.best = arguments.evaluation.best(self.is_multi_label)
        if self.is_multi_label:
            check_multi_label(arguments)
        if arguments.data.streaming:
            self.data = load_streamed_images(arguments.data)
        else:
            self.data = load_labelled_images(arguments.data, self.seed, is_multi_label=self.is_multi_label)
        set_seed(self.seed)
        labels_patches = is_on(arguments)
        self.model = build_model(arguments.model, class_mapping(self.data.class_names), labels_patches)
        for name, wanted in (
            ("tune_label_thresholds", arguments.loss.tune_label_thresholds),
            ("temperature_scaling", arguments.evaluation.temperature_scaling),
        ):
            if wanted and "validation" not in self.data.splits:
                raise ValueError(f"--{name} needs a validation split (--train_val_split)")
        problem_type: Any = arguments.loss.problem_type
        if problem_type is not None:
            self.model.config.problem_type = problem_type
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.tuned = None
        if arguments.lora.lora_r is not None:
            start: Any = arguments.model.model_name_or_path
            self.tuned = add_adapters(self.model, arguments.lora, head_parameters(self.model), start)
        self.processor = build_processor(arguments.model, self.model)
        options = arguments.optimization
        num_epochs = options.num_train_epochs if options.max_train_steps is None else None
        self.mix = BatchMix(arguments.augmentation, len(self.data.class_names), self.seed, num_epochs)
        self.label_loss = build_label_loss(arguments, self.data)
        self.teachers = None
        self.teacher_logits = None
        if arguments.distillation.teacher:
            self.teachers = TeacherEnsemble(arguments.distillation, self.data.class_names)
            if self.model.config.model_type == HfViTConfig.model_type:
                for name in ("distillation_type", "distillation_alpha", "distillation_temperature"):
                    setattr(self.model.config, name, getattr(arguments.distillation, name))
            if arguments.distillation.teacher_cache_dir is not None:
                folder = Path(arguments.distillation.teacher_cache_dir)
                self.teacher_logits = self._cached_teacher_logits(self.teachers, folder)

        annotator = arguments.token_labels.token_label_annotator if labels_patches else None
        for name, given in (("teacher", self.teachers), ("token_label_annotator", annotator)):
            if given is not None and num_channels_of(self.model) != 3:
                raise ValueError(f"--{name} sees images in colour, and the model's have num_channels 1")
        self.token_labeling = self._token_labeling(annotator) if labels_patches else None
        self.score_maps = self._score_maps() if labels_patches else None

    def plan_rows(self) -> dict[str, str]:
        rows = {"classes": self.data.summary()}
        for split, found in self.data.unused.items():
            for reason, names in found.items():
                rows.setdefault("unused", "")
                rows["unused"] += f"{'; ' if rows['unused'] else ''}{split}, {reason}: {listed(names, MOST_NAMED)}"
        if "train" in self.data.splits and (rare := rarity(self.data.class_counts("train"), self.data.class_names)):
            rows["rare"] = rare
        if missing := self.data.missing():
            rows["missing"] = missing
        bad = ", ".join(f"{split} {count:,}" for split, count in self.data.bad_samples.items() if count)
        if bad:
            rows["broken"] = f"left out because they cannot be decoded: {bad}"
        rows["images"] = describe_processor(self.arguments.model, self.processor, self.arguments.command)
        rows["augment"] = self.arguments.augmentation.describe()
        return rows

    @property
    def _train_transform(self) -> TrainTransform:
        return TrainTransform(self.arguments.augmentation, self.processor, self.seed)

    def _views(self, split: str, transform: TrainTransform | EvaluationTransform) -> ImageView:
        options: dict[str, Any] = {
            "keep_in_memory": self.arguments.data.keep_in_memory,
            "num_channels": num_channels_of(self.model),
        }
        return ImageView(self.data.splits[split], transform, **options)

    def _cached_teacher_logits(self, teachers: TeacherEnsemble, folder: Path) -> torch.Tensor | None:
        if self.arguments.data.streaming:
            raise ValueError("--teacher_cache_dir does not go with --streaming: a stream's samples have no number")
        random_parts = self.arguments.augmentation.random_parts
        if random_parts:
            raise ValueError(
                f"--teacher_cache_dir wants views that never change, but --{random_parts[0]} changes them"
            )
        if self.arguments.run.dry_run:
            return None
        described = self.data.describe()["splits"]["train"]["fingerprint"]
        return cached_logits(
            teachers.to(PartialState().device),
            ImageView(self.data.splits["train"], self._train_transform),
            folder,
            {"train": described, "processor": self.processor.to_dict()},
            {
                "batch_size": self.arguments.optimization.per_device_eval_batch_size,
                "num_workers": self.arguments.data.dataloader_num_workers,
            },
        )

    def _token_labeling(self, name: str | None) -> TokenLabeling:
        given, annotator = self.arguments.token_labels, None
        self.model.config.token_labeling_weight = given.token_labeling_weight
        if name is not None:
            options: dict[str, Any] = {
                "class_order": given.token_label_class_order,
                "trust_remote_code": given.token_label_trust_remote_code,
            }
            annotator = Annotator(name, self.data.class_names, **options)
        return TokenLabeling(given, annotator, self.model.config, self.data.class_names, self.seed)

    def _score_maps(self) -> KeptScores | DrawnLabels | None:
        """Labels of patches that are known of whole images."""
        given, labeling, names = self.arguments.token_labels, self.token_labeling, self.data.class_names
        patch_shape = self.model.config.patch_shape
        train = self.data.splits["train"]
        if self.arguments.data.token_label_column_name is not None:
            return DrawnLabels(train.features["token_label"], names, patch_shape)
        if given.token_label_cache_dir is None or self.arguments.run.dry_run:
            return None
        assert labeling is not None and labeling.annotator is not None
        annotator = labeling.annotator.to(PartialState().device)
        labeling.annotator = None  # batches bring the labels
        scores, classes = kept_scores(
            annotator,
            ImageView(train, WholeImages(annotator.size, annotator.interpolation)),
            Path(given.token_label_cache_dir),
            {"train": self.data.describe()["splits"]["train"]["fingerprint"]},
            given.token_label_top_k,
            {
                "batch_size": self.arguments.optimization.per_device_eval_batch_size,
                "num_workers": self.arguments.data.dataloader_num_workers,
            },
        )
        return KeptScores(scores, classes, len(names), patch_shape)

    def train_loader(self, batches_per_step: int) -> DataLoader:
        """Batches for all processes in order, or of this process from a stream."""
        if self.arguments.data.streaming:
            return self._stream_loader(batches_per_step)
        batch_size = self.arguments.optimization.per_device_train_batch_size
        num_repeats, seed = self.arguments.augmentation.repeated_augmentation, self.seed
        sampler: EpochBatchSampler
        if self.arguments.imbalance.balanced_sampling:
            if num_repeats > 1:
                raise ValueError("--balanced_sampling repeats images itself: it takes no --repeated_augmentation")
            sampler = BalancedBatchSampler(self.data.labels("train"), batch_size, batches_per_step, seed=seed)
        else:
            num_samples = len(self.data.splits["train"])
            sampler = EpochBatchSampler(num_samples, batch_size, batches_per_step, num_repeats=num_repeats, seed=seed)
        views = self._views("train", self._train_transform)
        views.token_labels = self.score_maps
        return data_loader(views, self.arguments.data, batch_sampler=sampler)

    def _stream_loader(self, batches_per_step: int) -> DataLoader:
        if self.arguments.augmentation.repeated_augmentation > 1:
            raise ValueError("--repeated_augmentation does not go with --streaming, which shows each sample once")
        batch_size = self.arguments.optimization.per_device_train_batch_size
        data: Any = self.data  # `StreamedImages`
        stream = ImageStream(
            data.stream,
            data.class_index,
            self._train_transform,
            samples_per_epoch=data.samples_per_epoch,
            batch_size=batch_size,
            batches_per_step=batches_per_step,
            buffer_size=self.arguments.data.shuffle_buffer_size,
            seed=self.seed,
            num_channels=num_channels_of(self.model),
        )
        workers = min(self.arguments.data.dataloader_num_workers, stream.max_workers)
        # Workers that stayed would not hear of the next epoch.
        options = {"batch_size": batch_size, "num_workers": workers, "persistent_workers": False}
        return data_loader(stream, self.arguments.data, **options)

    def evaluation_loader(self, split: str) -> DataLoader:
        batch_size = self.arguments.optimization.per_device_eval_batch_size
        views = self._views(split, EvaluationTransform(self.processor))
        return data_loader(views, self.arguments.data, batch_size=batch_size)

    def training_step(self, model: torch.nn.Module, batch: Batch) -> StepOutput:
        """Loss of the labels and, with teachers, of theirs, and with labels of patches of these; where there is more
        than one, `logs` tells them apart."""
        pixels, targets, labeling = batch["pixel_values"], batch["labels"], self.token_labeling
        if labeling is None:
            if self.mix.mixes:
                pixels, targets = self.mix(pixels, targets, batch["sample_key"][0])
            outputs = model(pixel_values=normalize(pixels, self.processor))
            return StepOutput(*self._image_loss(outputs, targets, pixels, batch))
        targets, token_labels, mask = labeling.mix(targets, labeling.labels(batch, pixels), batch["sample_key"][0])
        options = {} if mask is None else {"mixtoken_mask": mask}
        outputs = model(pixel_values=normalize(pixels, self.processor), **options)
        loss, logs = self._image_loss(outputs, targets, pixels, batch)
        token_loss = token_labeling_loss(outputs.token_logits, token_labels)
        logs = {**(logs or {"label_loss": loss}), "token_label_loss": token_loss}
        return StepOutput(loss + labeling.weight * token_loss, logs)

    def _image_loss(
        self, outputs: Any, targets: torch.Tensor, pixels: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of whole images, and its terms with teachers."""
        if self.teachers is None:
            return self.label_loss(outputs.logits, targets), {}
        if self.teacher_logits is not None:
            known = self.teacher_logits[torch.as_tensor(batch["sample_key"][:, 1])]
            teacher_logits = known.to(pixels.device, non_blocking=True)
        else:
            teacher_logits = self.teachers.to(pixels.device)(pixels.float())
        heads, options = head_logits(outputs), self.arguments.distillation
        label_loss = self.label_loss(heads.get("class", outputs.logits), targets)
        teacher_loss = distillation_loss(
            heads.get("distillation", outputs.logits),
            teacher_logits,
            options.distillation_type,
            options.distillation_temperature,
        )
        share = options.distillation_alpha
        logs = {"label_loss": label_loss, "teacher_loss": teacher_loss}
        return (1 - share) * label_loss + share * teacher_loss, logs

    def before_training(self, model: PreTrainedModel, measure: Callable[[str, Evaluator], Any]) -> dict[str, float]:
        """What nearest neighbours and a linear probe of the frozen start reach."""
        split = self.evaluation_splits[1]
        num_images = sum(len(self.data.splits.get(name, ())) for name in ("train", split))
        return frozen_start(self.arguments, model, self.processor, split, num_images, measure)

    def after_training(self, model: PreTrainedModel, measure: Callable[[str, Evaluator], Any]) -> None:
        """Choose the thresholds of labels, or the temperature, on the validation split."""
        chosen: dict[str, Any] = {}
        if self.arguments.loss.tune_label_thresholds:
            several = self._multi_label_evaluator("validation", final=False)
            measure("validation", several)
            chosen["label_thresholds"] = best_thresholds(*several.counted())
        if self.arguments.evaluation.temperature_scaling:
            logits = LogitsEvaluator(self.processor)
            measure("validation", logits)
            chosen["calibration_temperature"] = fit_temperature(*logits.counted())
        for config in (model.config, self.model.config):
            config.update(chosen)

    def _multi_label_evaluator(self, split: str, *, final: bool) -> MultiLabelEvaluator:
        return MultiLabelEvaluator(
            self.data.splits[split],
            self.data.class_names,
            self.processor,
            final=final,
            thresholds=getattr(self.model.config, "label_thresholds", None),
            num_samples=self.arguments.data.card_num_samples,
        )

    def evaluator(self, split: str, *, final: bool) -> ClassificationEvaluator | MultiLabelEvaluator:
        if self.is_multi_label:
            return self._multi_label_evaluator(split, final=final)
        return ClassificationEvaluator(
            self.data.splits[split],
            self.data.class_names,
            self.processor,
            final=final,
            num_samples=self.arguments.data.card_num_samples,
            teachers=self.teachers,
            by_class=self.best[0] in ("balanced_accuracy", "f1_macro"),
            annotator=None if self.token_labeling is None else self.token_labeling.origin,
        )

    @classmethod
    def assess(cls, arguments: Any) -> Assessment:
        """The images go through the model's own processor."""
        return assessment(arguments)

    def save_pretrained(self, model: PreTrainedModel, folder: Path, state_dict: dict | None = None) -> None:
        """Weights (of `state_dict`, else the model's own), config, the model's code and the processor; adapters are
        merged into the weights, and lie beside them, too."""
        if self.tuned is not None:
            found = getattr(model, "_orig_mod", model).state_dict() if state_dict is None else state_dict
            model, state_dict = merged(self.tuned, found, folder), None
        model.save_pretrained(folder, state_dict=state_dict)
        self.processor.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        described["model"]["num_parameters"] = self.num_parameters  # of the model that is saved, adapters merged
        return described

    def usage_snippet(self, folder: Path) -> str:
        return (
            "from transformers import pipeline\n"
            f'classifier = pipeline("image-classification", model="{folder}", trust_remote_code=True)'
        )
