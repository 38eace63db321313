"""The facts of a card: a dataclass filled from a run's records. This one is shared; each task adds its own to it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, ClassVar

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
_FRACTIONS = ("accuracy", "precision", "recall", "f1", "calibration_error")


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
class Split:
    """One split of the data. `class_counts[i]` examples bear label `i`."""

    name: str
    num_examples: int
    class_counts: list[int] = field(default_factory=list)
    fingerprint: str | None = None


@dataclass(frozen=True)
class Snippet:
    """A program that uses the model, and what it printed; `output` is None when it was not executed."""

    title: str
    code: str
    output: str | None = None


@dataclass(frozen=True)
class CardFacts(ABC):
    """Everything a card may say. A field that is None or empty was not measured and is left out of the card.

    Times are in seconds, memory in bytes, accuracies fractions in [0, 1], `speed` in examples per second, `energy` in
    kWh and `co2` in kg of CO2 equivalents. `evaluated_split` is the one that was followed during training. `measured`
    holds what was found when the model was run for its card, see `measure`.
    """

    figures: ClassVar[dict] = {}  # file name -> function of `figures`
    unit: ClassVar[str] = "examples"  # what one example of the data is called, plural

    folder: Path
    task: str
    name: str
    repo_id: str
    status: str
    author: dict[str, str]
    license: str | None

    model_class: str | None
    num_parameters: int | None
    num_trainable_parameters: int | None
    config: dict
    base_model: str | None
    base_model_revision: str | None
    measured: dict

    data_name: str | None
    data_revision: str | None
    data_license: str | None
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
    speed: float | None
    peak_memory: int | None
    energy: float | None
    co2: float | None
    hardware: dict

    command: str | None
    recipe: str | None
    git_commit: str | None
    versions: dict
    citations: list[citations.Paper]

    @classmethod
    def from_records(cls, records: Records) -> "CardFacts":
        return cls(**cls.read(records))

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        """The fields of this class by name; a task's class adds its own to those of the shared one."""
        run = records.run
        arguments, model, data = run.get("arguments", {}), run.get("model", {}), run.get("data", {})
        result, durations, cost = run.get("result", {}), run.get("duration_s", {}), run.get("cost", {})
        splits = [
            Split(name, info["num_examples"], info.get("class_counts", []), info.get("fingerprint"))
            for name, info in data.get("splits", {}).items()
            if "num_examples" in info
        ]
        repo_id = arguments.get("hub_model_id") or PurePath(arguments.get("output_dir", "")).name or run["task"]
        base_model = local(arguments["model_name_or_path"]) if "model_name_or_path" in arguments else None
        epochs = [epoch for epoch in run.get("epochs", []) if "epoch" in epoch]
        speed_key = f"{cls.unit}_per_second"
        speeds = [epoch[speed_key] for epoch in epochs if speed_key in epoch]
        return {
            "folder": records.folder,
            "task": run["task"],
            "name": repo_id.rpartition("/")[2],
            "repo_id": repo_id,
            "status": run.get("status", "finished"),
            "author": records.author,
            # The code in the folder is under Apache-2.0. So are weights trained from scratch unless their author says
            # otherwise; those that began as someone else's may not be.
            "license": records.author.get("license") or (None if base_model else "apache-2.0"),
            "model_class": model.get("class"),
            "num_parameters": model.get("num_parameters"),
            "num_trainable_parameters": model.get("num_trainable_parameters"),
            "config": records.config,
            "base_model": base_model,
            "base_model_revision": model.get("base_model_revision"),
            "measured": run.get("card", {}),
            "data_name": local(data["name"]) if "name" in data else None,
            "data_revision": data.get("revision"),
            "data_license": data.get("license"),
            "splits": splits,
            "split": result.get("split"),
            "num_examples": result.get("num_examples"),
            "metrics": scalar_metrics(result.get("metrics", {})),
            "epochs": epochs,
            "evaluated_split": next(
                (name for name in ("validation", "test") if name in data.get("splits", {})), result.get("split")
            ),
            "arguments": _hyper_parameters(arguments, run.get("non_default_arguments", [])),
            "seed": run.get("seed"),
            "training_duration": durations.get("training"),
            "total_duration": durations.get("total"),
            "speed": sum(speeds) / len(speeds) if speeds else None,
            "peak_memory": run.get("peak_memory_bytes"),
            "energy": cost.get("energy_kwh"),
            "co2": cost.get("co2_kg"),
            "hardware": run.get("hardware", {}),
            "command": run.get("command"),
            "recipe": run.get("recipe"),
            "git_commit": run.get("git_commit"),
            "versions": run.get("versions", {}),
            "citations": citations.of_methods(records.config, arguments),
        }

    @property
    def has_code(self) -> bool:
        """Whether the folder holds the model's own code, which `trust_remote_code=True` runs."""
        return "auto_map" in self.config

    @property
    def accuracy(self) -> float | None:
        """The result's accuracy, or None when it was not measured."""
        return next((metric.value for metric in self.metrics if metric.name == "accuracy"), None)

    @property
    def changed_arguments(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.changed]

    @property
    @abstractmethod
    def examples(self) -> list[Snippet]:
        """The programs that show how to use the model, before they are executed."""

    @property
    def example_files(self) -> list[str]:
        """The files of the folder that `examples` open, beside the model."""
        return []

    @property
    def pictures(self) -> list[str]:
        """The images of the folder on which a figure shows what the model attends to."""
        return []

    @property
    def snippets(self) -> list[Snippet]:
        """`examples` with the output recorded for exactly that code."""
        outputs = self.measured.get("outputs", {})
        return [Snippet(example.title, example.code, outputs.get(example.code)) for example in self.examples]


def scalar_metrics(values: dict) -> list[Metric]:
    """The single numbers among recorded metrics: accuracy first, then the other fractions, then the rest."""
    metrics = []
    for name, value in values.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            kind = "percent" if any(word in name for word in _FRACTIONS) and 0 <= value <= 1 else "number"
            label = name.replace("_", " ").replace("top5", "top-5").replace("loss", "loss (nats)")
            metrics.append(Metric(name, label[:1].upper() + label[1:], value, kind))
    return sorted(metrics, key=lambda metric: (metric.name != "accuracy", metric.kind == "number"))


def _hyper_parameters(arguments: dict, changed: list[str]) -> list[Argument]:
    return [
        Argument(name, value, name in changed)
        for name, value in sorted(arguments.items())
        if name not in _NOT_HYPER_PARAMETERS and not name.startswith(_NOT_HYPER_PARAMETER_PREFIXES)
    ]
