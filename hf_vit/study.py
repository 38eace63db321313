"""Compares variants of a recipe over several seeds: `python training/study.py NAME|PATH`.

A study is a YAML file: a `recipe`, `seeds`, `metrics` (the first one is drawn), `arguments` that hold for every run
and `variants`, each with the arguments that make it one. Every run is a whole `train.py` run in its own folder, so a
study that was stopped goes on where it was. The results are a JSON file, a Markdown table of mean and standard
deviation, and a picture.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_vit.config import argument, closest
from hf_vit.files import write_atomically
from hf_vit.record import RUN_FILE, Record, read_record
from hf_vit.train import parse
from hf_vit.trainer.checkpoint import CHECKPOINTS

STUDIES_DIR = Path("training/studies")  # of a clone
_MAY_DIFFER = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"}
_FIELDS = {"title", "recipe", "seeds", "metrics", "arguments", "variants"}


@dataclass
class StudyArguments:
    study: str = argument(None, help="A study of training/studies, or the path of a YAML file.")
    output_dir: str | None = argument(None, help="Where the runs are written; outputs/studies/STUDY when not given.")
    results_dir: str = argument("benchmarks/results", help="Where the table, the picture and the JSON are written.")


def load_study(name_or_path: str) -> dict[str, Any]:
    """The study's fields.

    Raises:
        ValueError: there is no such study, or a field is missing or unknown.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = STUDIES_DIR / f"{name_or_path}.yaml"
    if not path.is_file():
        studies = [study.stem for study in STUDIES_DIR.glob("*.yaml")]
        raise ValueError(f"study {name_or_path!r} not found; {closest(name_or_path, studies)}")
    study = yaml.safe_load(path.read_text(encoding="utf-8"))
    for unknown in sorted(set(study) - _FIELDS):
        raise ValueError(f"unknown field {unknown!r} in study {path.name}; {closest(unknown, sorted(_FIELDS))}")
    for missing in sorted(_FIELDS - {"arguments"} - set(study)):
        raise ValueError(f"study {path.name} has no field {missing!r}")
    return {"arguments": {}, **study, "name": path.stem}


def merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `common`; mappings are merged, not replaced."""
    values = {**common, **own}
    for name, value in own.items():
        if isinstance(value, dict) and isinstance(common.get(name), dict):
            values[name] = {**common[name], **value}
    return values


def run_arguments(words: list[str]) -> dict[str, list[str]]:
    """Arguments of train.py as a study writes them, from the words of a command line.

    Raises:
        ValueError: a value comes before any argument.
    """
    arguments = {}
    for word in words:
        if word.startswith("--"):
            name, *values = word[2:].split("=", 1)
            arguments[name] = values
        elif not arguments:
            raise ValueError(f"{word!r} belongs to no argument")
        else:
            arguments[name].append(word)
    return arguments


def run_command(study: dict[str, Any], variant: str, seed: int, folder: Path) -> list[str]:
    """The command of one run, which goes on from its last checkpoint if it has one."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "-m", "hf_vit.train"]
    command += ["--recipe", study["recipe"], "--seed", str(seed), "--output_dir", str(folder)]
    for name, value in merged(study["arguments"], study["variants"][variant] or {}).items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        command += [f"--{name}", *map(str, values)]
    if any((folder / CHECKPOINTS).glob("step_*")):
        return [*command, "--resume_from_checkpoint", "latest"]
    return [*command, "--overwrite_output_dir"] if (folder / RUN_FILE).is_file() else command


def finished_run(folder: Path) -> Record | None:
    """The record of the run in `folder`, or None while it is not finished."""
    run = read_record(folder) if (folder / RUN_FILE).is_file() else None
    return run if run is not None and run.status == "finished" else None


def check_arguments(run: Record, argv: list[str], folder: Path) -> None:
    """Raises a ValueError if a finished run was not made with what these arguments of train.py and their recipe say
    now, but for where it lies and how it went on."""
    wanted = parse(argv).to_dict()
    for name, value in json.loads(json.dumps(wanted)).items():
        if name in _MAY_DIFFER or run.arguments.get(name, value) == value:
            continue
        raise ValueError(
            f"{folder} holds a run with other arguments, --{name} {run.arguments[name]}, not {value}: "
            "choose another --output_dir"
        )


def train_one(study: dict[str, Any], variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Trains one run if it has not been trained yet; returns its row of the results.

    Raises:
        RuntimeError: the run failed; the message holds the end of its output.
        ValueError: it was trained with other arguments.
    """
    run, command = finished_run(folder), run_command(study, variant, seed, folder)
    if run is not None:
        check_arguments(run, command[5:], folder)
    else:
        done = subprocess.run(command, capture_output=True, text=True)
        run = finished_run(folder)
        if done.returncode or run is None:
            raise RuntimeError(f"{variant}, seed {seed} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return {
        "variant": variant,
        "seed": seed,
        **{name: _metric(run, name) for name in study["metrics"]},
        "num_parameters": run.model.num_parameters,
        "training_s": round(run.duration_s.training, 1),
        "split": run.result.split,
        "num_examples": run.result.num_examples,
        "versions": run.versions,
        "hardware": run.hardware.to_dict(),
    }


def _metric(run: Record, name: str) -> float:
    value = run.result.metrics.to_dict().get(name)
    if not isinstance(value, float):
        measured = [name for name, value in run.result.metrics.to_dict().items() if isinstance(value, float)]
        raise ValueError(f"metrics: {name!r} was not measured; {closest(name, measured)}")
    return value


def summarise(study: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, a row a variant."""
    summary = []
    for variant in study["variants"]:
        runs = [row for row in rows if row["variant"] == variant]
        entry = {"variant": variant, "num_parameters": runs[0]["num_parameters"], "num_runs": len(runs)}
        for name in study["metrics"]:
            values = [run[name] for run in runs]
            entry[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(runs) > 1 else None}
        summary.append(entry)
    return summary


def _shown(value: dict[str, float | None], name: str) -> str:
    scale, unit = (100, " %") if "accuracy" in name else (1, "")
    digits = 2 if unit else 4
    spread = "" if value["std"] is None else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}{unit}"


def table(study: dict[str, Any], summary: list[dict[str, Any]]) -> str:
    """Markdown: mean ± standard deviation of each metric."""
    lines = ["| Variant | " + " | ".join(study["metrics"]) + " | Parameters | Runs |"]
    lines.append("|---|" + "---:|" * (len(study["metrics"]) + 2))
    for entry in summary:
        values = " | ".join(_shown(entry[name], name) for name in study["metrics"])
        lines.append(f"| `{entry['variant']}` | {values} | {entry['num_parameters']:,} | {entry['num_runs']} |")
    return "\n".join(lines) + "\n"


def draw(study: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """Every run as a dot, the mean of each variant as a bar across them."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    name = study["metrics"][0]
    scale = 100 if "accuracy" in name else 1
    variants = list(study["variants"])
    figure, axes = pyplot.subplots(figsize=(7, 0.5 * len(variants) + 1.4), layout="constrained")
    for place, variant in enumerate(variants):
        values = [scale * row[name] for row in rows if row["variant"] == variant]
        axes.scatter(values, [place] * len(values), color="#0072B2", alpha=0.7, zorder=3)
        axes.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color="#D55E00", linewidth=3, zorder=4)
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e0e0e0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{rows[0]['split']} {name}" + (" (%)" if scale == 100 else ""))
    axes.set_title(f"{study['title']}\neach seed (dot) and the mean (bar)", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv and not argv[0].startswith("-"):
        argv = ["--study", *argv]
    parser = HfArgumentParser(StudyArguments, allow_abbrev=False)
    arguments, words = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    try:
        study = load_study(arguments.study or "")
        study["arguments"] = merged(study["arguments"], run_arguments(words))
    except ValueError as error:
        sys.exit(f"study.py: error: {error}")
    output_dir = Path(arguments.output_dir or Path("outputs/studies") / study["name"])
    results_dir = Path(arguments.results_dir)
    results_dir.mkdir(parents=True, exist_ok=True)
    runs = [(variant, seed) for seed in study["seeds"] for variant in study["variants"]]
    rows = []
    for variant, seed in tqdm(runs, unit="run"):
        try:
            rows.append(train_one(study, variant, seed, output_dir / variant / f"seed_{seed}"))
        except (RuntimeError, ValueError) as error:
            sys.exit(f"study.py: error: {error}")
        done = [entry for entry in study["variants"] if any(row["variant"] == entry for row in rows)]
        so_far = {**study, "variants": {entry: study["variants"][entry] for entry in done}}
        summary = summarise(so_far, rows)
        content = {"study": study, "summary": summary, "runs": rows}
        write_atomically(results_dir / f"{study['name']}.json", (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(results_dir / f"{study['name']}.md", table(so_far, summary).encode())
        draw(so_far, rows, results_dir / f"{study['name']}.png")
    print(table(study, summary))
    print(f"The results are in {results_dir}/{study['name']}.json, .md and .png")


if __name__ == "__main__":
    main()
