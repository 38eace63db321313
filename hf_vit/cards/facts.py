"""The facts of a card: a dataclass filled from a run's records. This one is shared; each task adds its own to it."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, ClassVar

from hf_vit import record, tasks
from hf_vit.cards import citations
from hf_vit.cards.format import local
from hf_vit.cards.records import Records

# Arguments that say where a run reads and writes rather than how the model was trained.
_NOT_HYPER_PARAMETERS = ("recipe", "task", "output_dir", "dry_run", "push_to_hub")
_NOT_HYPER_PARAMETER_PREFIXES = (
    "hub_",
    "card_",
    "overwrite_",
    "resume_",
    "with_tracking",
    "tracking_",
    "report_",
    "measure_",
)


@dataclass(frozen=True)
class Metric:
    """One measured number. `kind` is "percent" for a fraction in [0, 1] and "number" otherwise."""

    name: str
    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Argument:
    """A value the run was started with; `changed` when the user or the recipe set it."""

    name: str
    value: Any
    changed: bool


@dataclass(frozen=True)
class Curve:
    """A panel of the learning curves: a metric of each epoch, multiplied by `scale`, under a title."""

    title: str
    label: str
    metric: str
    scale: float = 1


@dataclass(frozen=True)
class Snippet:
    """A program that uses the model, and what it printed; `output` is None when it was not executed."""

    title: str
    code: str
    output: str | None = None


@dataclass(frozen=True)
class CardFacts(ABC):
    """Everything a card may say. A field that is None or empty was not measured and is left out of the card.

    Times are in seconds, memory in bytes, `speed` in examples per second, `energy` in kWh and `co2` in kg of CO2
    equivalents. `evaluated_split` is the one that was followed during training. `measured` holds what was found when
    the model was run for its card, see `measure`.
    """

    figures: ClassVar[dict] = {}  # file name -> function of `figures`
    curves: ClassVar[list[Curve]] = []  # beside that of the loss
    pipeline_tag: ClassVar[str | None] = None  # the task as the Hub calls it, where not by its name
    unit: ClassVar[str] = "examples"  # what one example of the data is called, plural
    architecture_labels: ClassVar[dict[str, str]] = {}  # of the configuration's fields that a card shows

    folder: Path
    task: str
    name: str
    repo_id: str
    status: str
    author: dict[str, str]
    license: str | None

    model: record.Model
    config: dict
    base_model: str | None
    measured: record.Measurement

    data_name: str | None
    data: record.Data
    splits: Mapping[str, record.Split]

    split: str | None
    num_examples: int | None
    metrics: list[Metric]
    baselines: dict[str, float]
    epochs: list[record.Epoch]
    kept_epoch: int | float | None
    schedule_changes: list[record.ScheduleChange]
    evaluated_split: str | None

    arguments: list[Argument]
    seed: int | None
    training_duration: float | None
    total_duration: float | None
    speed: float | None
    peak_memory: int | None
    energy: float | None
    co2: float | None
    hardware: record.Hardware

    command: str | None
    recipe: str | None
    git_commit: str | None
    versions: dict[str, str]
    citations: list[citations.Paper]

    @classmethod
    def from_records(cls, records: Records) -> "CardFacts":
        return cls(**cls.read(records))

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        """The fields of this class by name; a task's class adds its own to those of the shared one."""
        run, arguments, data, result = records.run, records.arguments, records.run.data, records.run.result
        repo_id = arguments.get("hub_model_id") or PurePath(arguments.get("output_dir", "")).name or run.task
        base_model = local(arguments["model_name_or_path"]) if "model_name_or_path" in arguments else None
        speeds = [epoch.samples_per_second for epoch in run.epochs if epoch.samples_per_second is not None]
        return {
            "folder": records.folder,
            "task": run.task,
            "name": repo_id.rpartition("/")[2],
            "repo_id": repo_id,
            "status": run.status,
            "author": records.author,
            # Runs of 0.1.0 said so without being told.
            "license": records.author.get("license") or (None if base_model or run.schema_version else "apache-2.0"),
            "model": run.model,
            "config": records.config,
            "base_model": base_model,
            "measured": run.card,
            "data_name": None if data.name is None else local(data.name),
            "data": data,
            "splits": {name: split for name, split in data.splits.items() if split.num_examples is not None},
            "split": result.split,
            "num_examples": result.num_examples,
            "metrics": metrics_of(result.metrics),
            "baselines": run.baselines,
            "kept_epoch": result.kept_epoch,
            "schedule_changes": run.schedule_changes,
            "epochs": [epoch for epoch in run.epochs if epoch.epoch is not None],
            "evaluated_split": next((name for name in ("validation", "test") if name in data.splits), result.split),
            "arguments": _hyper_parameters(arguments, run.non_default_arguments),
            "seed": run.seed,
            "training_duration": run.duration_s.training,
            "total_duration": run.duration_s.total,
            "speed": sum(speeds) / len(speeds) if speeds else None,
            "peak_memory": run.peak_memory_bytes,
            "energy": run.cost.energy_kwh,
            "co2": run.cost.co2_kg,
            "hardware": run.hardware,
            "command": run.command,
            "recipe": run.recipe,
            "git_commit": run.git_commit,
            "versions": {name: version for name, version in run.versions.items() if version is not None},
            "citations": citations.of_methods(records.config, arguments, tasks.folder_of(run.task)),
        }

    @property
    def evaluated_when(self) -> str:
        """When the run evaluated, for the curves."""
        whole = all(isinstance(row.epoch, int) for row in self.epochs)
        return "after each epoch" if whole else "at each evaluation"

    @property
    def has_code(self) -> bool:
        """Whether the folder holds the model's own code, which `trust_remote_code=True` runs."""
        return "auto_map" in self.config

    @property
    def hub_metrics(self) -> list[str]:
        """The metrics of the result that the Hub lists models by, by its names."""
        return []

    @property
    def architecture(self) -> dict[str, Any]:
        """The design choices that the configuration states, by the label a card gives them."""
        labels = self.architecture_labels
        return {label: self.config[name] for name, label in labels.items() if self.config.get(name)}

    @property
    def changed_arguments(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.changed]

    @property
    @abstractmethod
    def examples(self) -> list[Snippet]:
        """The programs that show how to use the model, before they are executed."""

    @property
    def pipeline_task(self) -> str:
        """The task as transformers' pipelines and the Hub call it."""
        return self.pipeline_tag or self.task.replace("_", "-")

    @property
    def pinned_example(self) -> str:
        """How to load a published model as it is today, whatever is pushed later."""
        name = json.dumps(self.repo_id)
        return (
            "from huggingface_hub import model_info\nfrom transformers import pipeline\n\n"
            f"commit = model_info({name}).sha  # today's: write down the one that you have read\n"
            f'pipe = pipeline(\n    "{self.pipeline_task}",\n    model={name},\n    revision=commit,\n'
            "    code_revision=commit,\n    trust_remote_code=True,\n)\n"
        )

    @property
    def example_files(self) -> list[str]:
        """The files of the folder that `examples` open, beside the model."""
        return []

    @property
    def has_inputs(self) -> bool:
        """Whether there is what `examples` open, so that they can be executed."""
        return True

    @property
    def attended(self) -> list[str]:
        """The inputs for which a figure shows what the model attends to: texts, or names of files of the folder."""
        return []

    @property
    def snippets(self) -> list[Snippet]:
        """`examples` with the output recorded for exactly that code."""
        outputs = self.measured.outputs
        return [Snippet(example.title, example.code, outputs.get(example.code)) for example in self.examples]


def metrics_of(measured: record.Metrics) -> list[Metric]:
    """The numbers among recorded metrics, those that the schema declares first."""
    metrics = []
    for name, field_info in type(measured).model_fields.items():
        value = getattr(measured, name)
        if isinstance(value, float):
            extra: Any = field_info.json_schema_extra or {}
            kind = extra.get("kind", "number")
            metrics.append(Metric(name, field_info.title or _sentence(name), value, kind))
    others = (measured.model_extra or {}).items()
    return metrics + [Metric(name, _sentence(name), value, "number") for name, value in others]


def _sentence(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _hyper_parameters(arguments: dict, changed: list[str]) -> list[Argument]:
    return [
        Argument(name, value, name in changed)
        for name, value in sorted(arguments.items())
        if name not in _NOT_HYPER_PARAMETERS and not name.startswith(_NOT_HYPER_PARAMETER_PREFIXES)
    ]
