"""The facts of a card: one dataclass filled from a run's records, the same for every task."""

from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from . import records

# Arguments that say where things go rather than how the model was trained.
_NOT_HYPER_PARAMETERS = (
    "output_dir",
    "push_to_hub",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "with_tracking",
)
_NOT_HYPER_PARAMETER_PREFIXES = ("hub_", "card_", "report_", "logging_")


@dataclass(frozen=True)
class Metric:
    """One measured number. `kind` is "percent" for a fraction in [0, 1] and "number" otherwise."""

    name: str
    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Argument:
    """A value the run was started with; `changed` when the user or the recipe set it to other than its default."""

    name: str
    value: Any
    changed: bool


@dataclass(frozen=True)
class Split:
    name: str
    num_examples: int
    class_counts: list[int] = field(default_factory=list)
    fingerprint: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """Everything a card may say. A field that is None or empty was not measured and is left out of the card.

    Times are in seconds, memory in bytes, accuracies fractions in [0, 1].
    """

    task: str
    name: str
    repo_id: str
    status: str
    license: str | None

    model_class: str | None
    num_parameters: int | None
    num_trainable_parameters: int | None
    config: dict
    base_model: str | None

    data_name: str | None
    data_revision: str | None
    data_license: str | None
    class_names: list[str]
    splits: list[Split]

    split: str | None
    num_examples: int | None
    metrics: list[Metric]

    epochs: list[dict]
    evaluated_split: str | None
    arguments: list[Argument]
    seed: int | None

    training_duration: float | None
    total_duration: float | None
    images_per_second: float | None
    peak_memory: int | None
    hardware: dict

    command: str | None
    recipe: str | None
    git_commit: str | None
    versions: dict

    @classmethod
    def from_folder(cls, folder: str | Path) -> "CardFacts":
        """Reads `run.json` and, where present, `config.json` of a folder that a training run has written.

        Raises:
            ValueError: the records are absent, unreadable, or of a run that names no task.
        """
        folder = Path(folder)
        run = records.read_json(folder, records.RUN_FILE)
        if not isinstance(run.get("task"), str):
            raise ValueError(f"folder: {folder / records.RUN_FILE} does not name its task")
        has_config = (folder / records.CONFIG_FILE).is_file()
        config = records.read_json(folder, records.CONFIG_FILE) if has_config else {}
        arguments, model, data = run.get("arguments", {}), run.get("model", {}), run.get("data", {})
        result, durations = run.get("result", {}), run.get("duration_s", {})
        splits = [
            Split(name, info["num_examples"], info.get("class_counts", []), info.get("fingerprint"))
            for name, info in data.get("splits", {}).items()
            if "num_examples" in info
        ]
        repo_id = arguments.get("hub_model_id") or PurePath(arguments.get("output_dir", "")).name or run["task"]
        base_model = arguments.get("model_name_or_path")
        epochs = [epoch for epoch in run.get("epochs", []) if "epoch" in epoch]
        return cls(
            task=run["task"],
            name=repo_id.rpartition("/")[2],
            repo_id=repo_id,
            status=run.get("status", "finished"),
            license=None if base_model else "apache-2.0",
            model_class=model.get("class"),
            num_parameters=model.get("num_parameters"),
            num_trainable_parameters=model.get("num_trainable_parameters"),
            config=config,
            base_model=base_model,
            data_name=data.get("name"),
            data_revision=data.get("revision"),
            data_license=data.get("license"),
            class_names=[str(label) for label in data.get("class_names", [])],
            splits=splits,
            split=result.get("split"),
            num_examples=result.get("num_examples"),
            metrics=_scalar_metrics(result.get("metrics", {})),
            epochs=epochs,
            evaluated_split=_evaluated_split(splits, result),
            arguments=_hyper_parameters(arguments, run.get("non_default_arguments", [])),
            seed=run.get("seed"),
            training_duration=durations.get("training"),
            total_duration=durations.get("total"),
            images_per_second=_mean([epoch["images_per_second"] for epoch in epochs if "images_per_second" in epoch]),
            peak_memory=run.get("peak_memory_bytes"),
            hardware=run.get("hardware", {}),
            command=run.get("command"),
            recipe=run.get("recipe"),
            git_commit=run.get("git_commit"),
            versions=run.get("versions", {}),
        )

    @property
    def accuracy(self) -> float | None:
        """The result's accuracy, or None when it was not measured."""
        return next((metric.value for metric in self.metrics if metric.name == "accuracy"), None)

    @property
    def changed_arguments(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.changed]


_FRACTIONS = ("accuracy", "precision", "recall", "f1")


def _scalar_metrics(values: dict) -> list[Metric]:
    metrics = []
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            kind = "percent" if any(word in name for word in _FRACTIONS) and 0 <= value <= 1 else "number"
            label = name.replace("_", " ").replace("top5", "top-5")
            metrics.append(Metric(name, label[:1].upper() + label[1:], value, kind))
    return sorted(metrics, key=lambda metric: (metric.name != "accuracy", metric.kind == "number"))


def _hyper_parameters(arguments: dict, changed: list[str]) -> list[Argument]:
    return [
        Argument(name, value, name in changed)
        for name, value in sorted(arguments.items())
        if name not in _NOT_HYPER_PARAMETERS and not name.startswith(_NOT_HYPER_PARAMETER_PREFIXES)
    ]


def _evaluated_split(splits: list[Split], result: dict) -> str | None:
    """The split that the metrics of each epoch were measured on."""
    return "validation" if any(split.name == "validation" for split in splits) else result.get("split")


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
