"""Recipe `multi30k_de_en` beside recurrent translators: LSTMs with attention, and without it.

    python benchmarks/recurrent.py [--output_dir outputs/recurrent] [train.py's arguments ...]

Same data, tokenizer, batches, loss and script; models of about the same size, trained for about the same time, each
with the learning rate and the schedule that suit it. Writes quality and training speed, and BLEU by the length of the
source, as JSON, table and picture. Finished runs are not trained again, unfinished ones go on from their last
checkpoint.
"""

import argparse
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import recurrent_model  # noqa: F401  registers the recurrent translator
import torch
import transformers
import yaml
from report import write_report
from sacrebleu.metrics import BLEU
from translation_quality import load, translations

from hf_vit.files import write_atomically
from hf_vit.recipes import load_recipe
from hf_vit.study import check_arguments, finished_run
from hf_vit.tasks.translation.data import load_parallel_texts
from hf_vit.train import parse
from hf_vit.trainer.checkpoint import CHECKPOINTS

RECIPE = "multi30k_de_en"
RECURRENT = {
    "model_type": "recurrent_translator",
    "num_train_epochs": 24,  # on one core they take as long as the Transformer's 30
    "learning_rate": 0.003,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
}
CONTENDERS = {
    "Transformer": {},
    "LSTM with attention": {**RECURRENT, "config_overrides": {"use_attention": True}},
    "LSTM, fixed vector": {**RECURRENT, "config_overrides": {"use_attention": False}},
}
PROGRAM = "import sys, recurrent_model; from hf_vit.train import main; main(sys.argv[1:])"
LENGTHS = (0, 8, 11, 14, 18, 1000)  # words of the source


def train(name: str, output: Path, common: list[str]) -> dict:
    """The records of the run.

    Raises:
        ValueError: it was trained with other arguments.
    """
    recipe = output.with_suffix(".yaml") if CONTENDERS[name] else Path(RECIPE)
    if CONTENDERS[name]:  # flags would merge the config's fields with those of the recipe
        write_atomically(recipe, yaml.safe_dump({**load_recipe(RECIPE), **CONTENDERS[name]}).encode())
    arguments = ["--recipe", str(recipe), "--output_dir", str(output), *common]
    run = finished_run(output)
    if run is not None:
        check_arguments(run, arguments, output)
    else:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        resumes = any((output / CHECKPOINTS).glob("step_*"))
        command += ["--resume_from_checkpoint", "latest"] if resumes else ["--overwrite_output_dir"]
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    return finished_run(output)


def by_length(predictions: list[str], sources: list[str], references: list[str]) -> list[dict]:
    """BLEU of the sources of each range of lengths."""
    words = np.array([len(source.split()) for source in sources])
    rows = []
    for low, high in pairwise(LENGTHS):
        chosen = np.flatnonzero((low <= words) & (words < high))
        if len(chosen):
            score = BLEU().corpus_score([predictions[i] for i in chosen], [[references[i] for i in chosen]])
            mean = float(words[chosen].mean())
            rows.append({"mean_words": mean, "num_examples": len(chosen), "bleu": score.score})
    return rows


def row_of(run: dict) -> dict:
    """The row of a run in the table."""
    speeds = [epoch["sentences_per_second"] for epoch in run["epochs"]]
    tokens = sum(run["data"]["splits"]["train"]["mean_tokens"])
    measured, beam = run["result"]["metrics"], f"beam{run['arguments']['num_beams']}_bleu"
    return {
        **{name: measured[name] for name in ("bleu", "bleu_lowercase", "loss")},
        "num_beams": run["arguments"]["num_beams"],
        "beam_bleu": measured[beam],
        "num_parameters": run["model"]["num_parameters"],
        "num_epochs": len(run["epochs"]),
        "tokens_per_second": float(np.median(speeds)) * tokens,
        "training_s": run["duration_s"]["training"],
        "hardware": run["hardware"],
        "versions": run["versions"],
        "curve": [epoch["metrics"]["bleu"] for epoch in run["epochs"]],
    }


def table(rows: dict[str, dict]) -> str:
    num_beams = max(row["num_beams"] for row in rows.values())
    titles = ("Model", "BLEU, greedy", f"BLEU, {num_beams} beams", "Loss", "Parameters", "Training tokens/s")
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * 5]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['bleu']:.2f} | {row['beam_bleu']:.2f} | {row['loss']:.3f} | {row['num_parameters']:,} | "
            f"{row['tokens_per_second']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: dict[str, dict], path: Path) -> None:
    """BLEU over epochs, and over the length of the source."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, color in zip(rows, ("#0072B2", "#D55E00", "#009E73")):
        row = rows[name]
        left.plot(range(1, len(row["curve"]) + 1), row["curve"], color=color, label=name)
        lengths = [part["mean_words"] for part in row["by_length"]]
        right.plot(lengths, [part["bleu"] for part in row["by_length"]], "o-", color=color, label=name)
    left.set(xlabel="epoch", ylabel="validation BLEU, greedy")
    right.set(xlabel="words of the source (mean of a range)", ylabel="test BLEU, greedy")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(color="#e0e0e0")
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/recurrent"), help="where the runs are kept")
    parser.add_argument("--transformer_dir", type=Path, help="a finished run of the recipe, not to train it again")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/recurrent.json"))
    arguments, common = parser.parse_known_args()
    data = parse(["--recipe", RECIPE, *common])
    test = load_parallel_texts(data.data, data.run.seed).splits["test"]
    sources, references = list(test["source"]), list(test["target"])
    rows = {}
    for name in CONTENDERS:
        output = arguments.output_dir / name.replace(" ", "_").replace(",", "").lower()
        if name == "Transformer" and arguments.transformer_dir is not None:
            output = arguments.transformer_dir
        rows[name] = row_of(train(name, output, common))
        rows[name]["by_length"] = by_length(translations(load(output), sources, 1, name), sources, references)
        report = [{"model": name, **row} for name, row in rows.items()]
        write_report(arguments.output, report, (torch, transformers))
        write_atomically(arguments.output.with_suffix(".md"), table(rows).encode())
        draw(rows, arguments.output.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
