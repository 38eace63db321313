"""Compares variants of a recipe over several seeds: `hf-vit study PATH`, in a clone `python training/study.py NAME`.

A study is a YAML file: a `recipe`, `seeds`, `metrics` (the first one is drawn), `arguments` that hold for every run
and `variants`, each with the arguments that make it one; with `folds` each variant and seed is trained once for each
part of the training split, which is its validation split, and predicts it. Every run is a whole run of `hf_vit.train`
in its own folder, so a study that was stopped goes on where it was. `--search` looks for good arguments instead, see
`hf_vit.search`. The results are a JSON file, a Markdown table of mean and standard
deviation, and a picture; what a task's record calls a percentage is shown as one.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import HfArgumentParser

from hf_vit.cards.facts import metrics_of
from hf_vit.config import HelpFormatter, argument, closest
from hf_vit.errors import DEBUG_HELP, told
from hf_vit.files import read_utf8, write_atomically
from hf_vit.recipes import read_yaml
from hf_vit.record import PREDICTIONS_FILE, RUN_FILE, Record, read_record
from hf_vit.search import search
from hf_vit.train import parse
from hf_vit.trainer.output_dir import CHECKPOINTS

_MAY_DIFFER = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint"}
_NEEDED = {"title", "recipe", "seeds", "metrics"}
_OTHERS = {"arguments", "variants", "folds", "search", "trials"}


@dataclass
class StudyArguments:
    study: str = argument(None, help="The path of a study, a YAML file; in a clone also a name in training/studies.")
    output_dir: str | None = argument(None, help="Where the runs are written; outputs/studies/STUDY when not given.")
    results_dir: str | None = argument(
        None, help="Where the table, the picture and the JSON are written; output_dir when not given."
    )
    search: bool = argument(False, help="Search the study's space with optuna instead of comparing its variants.")
    dry_run: bool = argument(False, help="Print the command of each run that is missing, then exit.")


def load_study(name_or_path: str, studies: Path | None = None) -> dict[str, Any]:
    """The study's fields.

    Args:
        studies: a folder of studies, which can be named without path and suffix.

    Raises:
        ValueError: there is no such study, or a field is missing, unknown or not what it should be.
    """
    path = Path(name_or_path)
    known = {file.stem: file for file in studies.glob("*.yaml")} if studies else {}
    if path.suffix not in (".yaml", ".yml"):
        path = known.get(name_or_path, path)
    if not path.is_file():
        hint = closest(name_or_path, sorted(known)) if known else "give the path of a YAML file"
        raise ValueError(f"study {name_or_path!r} not found; {hint}")
    study = read_yaml(read_utf8(path))
    if not isinstance(study, dict):
        raise ValueError(f"study {path.name} must hold `name: value` lines, found {type(study).__name__}")
    allowed = sorted(_NEEDED | _OTHERS)
    for unknown in sorted(set(study) - set(allowed)):
        raise ValueError(f"unknown field {unknown!r} in study {path.name}; {closest(unknown, allowed)}")
    for missing in sorted(_NEEDED - set(study)):
        raise ValueError(f"study {path.name} has no field {missing!r}")
    if not ("variants" in study or "search" in study):
        raise ValueError(f"study {path.name} has no field 'variants', and no 'search' either")
    for name in ("folds", "trials"):
        least = 2 if name == "folds" else 1
        if name in study and not (isinstance(study[name], int) and study[name] >= least):
            raise ValueError(f"{name} of study {path.name} must be a number from {least} on, found {study[name]!r}")
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


def run_words(study: dict[str, Any], variant: str, seed: int, folder: Path, fold: int | None = None) -> list[str]:
    """The arguments of one run, which goes on from its last checkpoint if it has one."""
    words = ["--recipe", study["recipe"], "--seed", str(seed), "--output_dir", str(folder)]
    if fold is not None:
        words += ["--num_folds", str(study["folds"]), "--fold", str(fold)]
    for name, value in merged(study["arguments"], study["variants"][variant] or {}).items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        words += [f"--{name}", *map(str, values)]
    if any((folder / CHECKPOINTS).glob("step_*")):
        return [*words, "--resume_from_checkpoint", "latest"]
    return [*words, "--overwrite_output_dir"] if (folder / RUN_FILE).is_file() else words


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


def train_one(study: dict[str, Any], variant: str, seed: int, folder: Path, fold: int | None = None) -> Record:
    """Trains one run if it has not been trained yet; returns its record.

    Raises:
        ChildProcessError: the run failed; the message holds the last line of its output.
        ValueError: it was trained with other arguments.
    """
    run, words = finished_run(folder), run_words(study, variant, seed, folder, fold)
    if run is not None:
        check_arguments(run, words, folder)
    else:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "-m", "hf_vit.train", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        run = finished_run(folder)
        if done.returncode or run is None:
            print(done.stdout[-2000:] + done.stderr[-2000:], file=sys.stderr)
            last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
            raise ChildProcessError(f"{variant}, seed {seed} failed: {last}")
    return run


def row_of(study: dict[str, Any], variant: str, seed: int, run: Record, fold: int | None = None) -> dict[str, Any]:
    """A run's row of the results.

    Raises:
        ValueError: it has not measured one of the study's metrics.
    """
    durations: Any = run.duration_s
    measured = {metric.name: metric.value for metric in metrics_of(run.result.metrics)}
    for name in study["metrics"]:
        if name not in measured:
            raise ValueError(f"metrics: {name!r} was not measured; {closest(name, sorted(measured))}")
    return {
        "variant": variant,
        "seed": seed,
        **({} if fold is None else {"fold": fold}),
        **{name: measured[name] for name in study["metrics"]},
        "num_parameters": run.model.num_parameters,
        "training_s": round(durations.training, 1),
        "split": run.result.split,
        "num_examples": run.result.num_examples,
        "versions": run.versions,
        "hardware": run.hardware.to_dict(),
    }


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


def _shown(mean: float, std: float | None, *, percent: bool) -> str:
    scale, unit, digits = (100, " %", 2) if percent else (1, "", 4)
    spread = "" if std is None else f" ± {scale * std:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}{unit}"


def table(study: dict[str, Any], summary: list[dict[str, Any]], percent: Container[str]) -> str:
    """Markdown: mean ± standard deviation of each metric, of those named by `percent` in per cent."""
    lines = ["| Variant | " + " | ".join(study["metrics"]) + " | Parameters | Runs |"]
    lines.append("|---|" + "---:|" * (len(study["metrics"]) + 2))
    for entry in summary:
        values = " | ".join(_shown(**entry[name], percent=name in percent) for name in study["metrics"])
        lines.append(f"| `{entry['variant']}` | {values} | {entry['num_parameters']:,} | {entry['num_runs']} |")
    return "\n".join(lines) + "\n"


def draw(study: dict[str, Any], rows: list[dict[str, Any]], percent: Container[str], path: Path) -> None:
    """Every run as a dot, the mean of each variant as a bar across them."""
    name = study["metrics"][0]
    scale = 100 if name in percent else 1
    variants = list(study["variants"])
    figure = Figure(figsize=(7, 0.5 * len(variants) + 1.4), layout="constrained")
    axes = figure.subplots()
    for position, variant in enumerate(variants):
        values = [scale * row[name] for row in rows if row["variant"] == variant]
        axes.scatter(values, [position] * len(values), color="#0072B2", alpha=0.7, zorder=3)
        axes.plot(
            [statistics.mean(values)] * 2, [position - 0.3, position + 0.3], color="#D55E00", linewidth=3, zorder=4
        )
    axes.set_yticks(range(len(variants)), variants)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e0e0e0")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"{rows[0]['split']} {name}" + (" (%)" if scale == 100 else ""))
    axes.set_title(f"{study['title']}\neach seed (dot) and the mean (bar)", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None, studies: Path | None = None, results_dir: Path | None = None) -> None:
    """Trains what is missing of a study and writes its results.

    Args:
        argv: the command line, `sys.argv[1:]` when None.
        studies: see `load_study`.
        results_dir: where the results go unless the command line says it, the runs' folder when None.

    Raises:
        ValueError: the study or its arguments are wrong, or finished runs were made with others.
        ChildProcessError: a run failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--study", *words]
    parser = HfArgumentParser(
        cast(Any, StudyArguments),
        allow_abbrev=False,
        formatter_class=HelpFormatter,
        usage="%(prog)s STUDY [--argument VALUE ...]",
        description="Compares variants of a recipe. Arguments of `train` hold for every run.",
        epilog=DEBUG_HELP,
    )
    arguments, words = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    study = load_study(arguments.study or "", studies)
    study["arguments"] = merged(study["arguments"], run_arguments(words))
    output_dir = Path(arguments.output_dir or Path("outputs/studies") / study["name"])
    results = Path(arguments.results_dir or results_dir or output_dir)
    if arguments.search:

        def train(values: dict[str, Any], seed: int, folder: Path) -> Record:
            return train_one({**study, "variants": {"trial": values}}, "trial", seed, folder)

        search(study, output_dir, results, train)
        return
    if "variants" not in study:
        raise ValueError(f"study {study['name']} has no variants to compare: give --search")
    runs = runs_of(study, output_dir)
    if arguments.dry_run:
        for (variant, seed, fold), folder in runs.items():
            if finished_run(folder) is None:
                print(shlex.join(["hf-vit", "train", *run_words(study, variant, seed, folder, fold)]))
    else:
        _run(study, runs, results)


def runs_of(study: dict[str, Any], output_dir: Path) -> dict[tuple[str, int, int | None], Path]:
    """The folder of each run by variant, seed and, where there are folds, the fold."""
    runs: dict[tuple[str, int, int | None], Path] = {}
    for seed in study["seeds"]:
        for variant in study["variants"]:
            folder = output_dir / variant / f"seed_{seed}"
            if "folds" in study:
                runs.update({(variant, seed, fold): folder / f"fold_{fold}" for fold in range(study["folds"])})
            else:
                runs[variant, seed, None] = folder
    return runs


def out_of_fold(runs: dict[tuple[str, int, int | None], Path], results_dir: Path, name: str) -> list[dict[str, Any]]:
    """Write what each training sample was taken for by the run that did not see it, a file for each variant and seed,
    in the order of the training split; returns their facts.

    Raises:
        ValueError: a sample was not predicted once.
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (variant, seed, fold), folder in runs.items():
        lines = read_utf8(folder / PREDICTIONS_FILE).splitlines()
        found.setdefault((variant, seed), []).extend({**json.loads(line), "fold": fold} for line in lines)
    facts = []
    for (variant, seed), rows in found.items():
        rows.sort(key=lambda row: row["train_index"])
        if [row["train_index"] for row in rows] != list(range(len(rows))):
            raise ValueError(f"{variant}, seed {seed}: the folds do not predict each training sample once")
        file = results_dir / f"{name}_{variant}_seed_{seed}_out_of_fold.jsonl"
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        accuracy = statistics.mean(row["prediction"] == row["label"] for row in rows)
        facts.append({"variant": variant, "seed": seed, "accuracy": accuracy, "num_examples": len(rows)})
    return facts


def _run(study: dict[str, Any], runs: dict[tuple[str, int, int | None], Path], results_dir: Path) -> None:
    """Trains each run that is missing and, after each, writes the results so far."""
    results_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for (variant, seed, fold), folder in tqdm(runs.items(), unit="run"):
        run = train_one(study, variant, seed, folder, fold)
        percent = {metric.name for metric in metrics_of(run.result.metrics) if metric.kind == "percent"}
        rows.append(row_of(study, variant, seed, run, fold))
        done = [entry for entry in study["variants"] if any(row["variant"] == entry for row in rows)]
        so_far = {**study, "variants": {entry: study["variants"][entry] for entry in done}}
        summary = summarise(so_far, rows)
        content = {"study": study, "summary": summary, "runs": rows}
        if "folds" in study and len(rows) == len(runs):
            content["out_of_fold"] = out_of_fold(runs, results_dir, study["name"])
        write_atomically(results_dir / f"{study['name']}.json", (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(results_dir / f"{study['name']}.md", table(so_far, summary, percent).encode())
        draw(so_far, rows, percent, results_dir / f"{study['name']}.png")
    print((results_dir / f"{study['name']}.md").read_text(encoding="utf-8"))
    print(f"The results are in {results_dir}/{study['name']}.json, .md and .png")


if __name__ == "__main__":
    with told():
        main()
