"""Searches the space of a study with optuna: `hf-vit study PATH --search`.

The study's `search` names arguments of training, each with a list of values, or with `low` and `high` and perhaps
`log: true`; `trials` says how many combinations are tried. A combination is trained once for each seed; its value is
the mean of the study's first metric on the validation split, at the epoch whose weights are kept: a test split chooses
nothing. What was tried stands in a journal, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_vit.extras import extra
from hf_vit.files import write_atomically
from hf_vit.record import Record

_NUM_TRIALS = 20
_RANGE = {"low", "high", "log"}


def check_space(space: Any) -> None:
    """Raise `ValueError` where a space holds something else than lists of values and ranges."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError("search must name arguments of training, each with a list of values or low and high")
    for name, found in space.items():
        is_range = isinstance(found, Mapping) and {"low", "high"} <= set(found) <= _RANGE
        if is_range and found["low"] < found["high"] and (found["low"] > 0 or not found.get("log")):
            continue
        if not (isinstance(found, list) and len(found) > 1):
            raise ValueError(
                f"search: {name} must be a list of two values or more, or low < high (and log: true, from above 0), "
                f"found {found!r}"
            )


def suggested(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one of optuna's trials."""
    values: dict[str, Any] = {}
    for name, found in space.items():
        if isinstance(found, list):
            values[name] = trial.suggest_categorical(name, found)
        elif isinstance(found["low"], int) and isinstance(found["high"], int):
            values[name] = trial.suggest_int(name, found["low"], found["high"], log=bool(found.get("log")))
        else:
            values[name] = trial.suggest_float(name, found["low"], found["high"], log=bool(found.get("log")))
    return values


def value_of(run: Record, metric: str) -> float:
    """A metric of a run on the validation split, at the epoch whose weights it keeps.

    Raises:
        ValueError: it had no validation split, or did not measure it there.
    """
    if "validation" not in run.data.splits:
        raise ValueError("--search needs a validation split (--train_val_split): a test split chooses nothing")
    kept = run.result.kept_epoch or run.epochs[-1].epoch
    row = next(row for row in run.epochs if row.epoch == kept)
    try:
        value = row.metrics.number(metric)
    except AttributeError:
        value = None
    if value is None:
        raise ValueError(f"metrics: {metric!r} was not measured on the validation split")
    return value


def search(
    study: dict[str, Any], output_dir: Path, results_dir: Path, train: Callable[[dict[str, Any], int, Path], Record]
) -> None:
    """Try what is left of the study's trials, and write the results after each.

    Args:
        train: the arguments of a trial, a seed and a folder to the record of a run, trained unless it was already.

    Raises:
        ValueError: the space is wrong, or every trial failed.
    """
    with extra("search"):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState
    check_space(study.get("search"))
    metric, seeds = study["metrics"][0], study["seeds"]
    output_dir.mkdir(parents=True, exist_ok=True)
    results_dir.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(
        study_name=study["name"],
        storage=JournalStorage(JournalFileBackend(str(output_dir / "search.journal"))),
        direction="minimize" if metric == "loss" else "maximize",
        load_if_exists=True,
    )
    # A search that goes on must not draw again what it drew first.
    found.sampler = optuna.samplers.TPESampler(seed=seeds[0] + len(found.trials))
    for stale in found.get_trials(states=(TrialState.RUNNING,)):  # of a search that was stopped
        found.tell(stale.number, state=TrialState.FAIL)
        found.enqueue_trial(stale.params)

    def objective(trial: Any) -> float:
        values = suggested(trial, study["search"])
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        folder = output_dir / "trials" / digest
        try:
            runs = [train(values, seed, folder / f"seed_{seed}") for seed in seeds]
        except KeyboardInterrupt:
            found.enqueue_trial(values)  # to go on from its checkpoint
            raise
        return statistics.mean(value_of(run, metric) for run in runs)

    done = len(found.get_trials(states=(TrialState.COMPLETE,)))
    found.optimize(
        objective,
        n_trials=max(study.get("trials", _NUM_TRIALS) - done, 0),
        catch=(ChildProcessError,),
        callbacks=[lambda _, trial: _write(study, found, results_dir)],
    )
    if not found.get_trials(states=(TrialState.COMPLETE,)):
        raise ValueError("--search: every trial failed; the first lines above say why")
    _write(study, found, results_dir)
    print((results_dir / f"{study['name']}_search.md").read_text(encoding="utf-8"))
    print(
        f"{study['title']}: best {found.best_params}; the trials are in {results_dir}/{study['name']}_search.json, .md"
    )


def _write(study: dict[str, Any], found: Any, results_dir: Path) -> None:
    sign = -1 if found.direction.name == "MAXIMIZE" else 1
    done = sorted((each for each in found.trials if each.value is not None), key=lambda each: sign * each.value)
    rows = [{"trial": each.number, "value": each.value, **each.params} for each in done]
    content = {"study": study, "metric": study["metrics"][0], "split": "validation", "trials": rows}
    path = results_dir / f"{study['name']}_search.json"
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    names = list(study["search"])
    lines = [f"| Trial | validation {study['metrics'][0]} | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    lines += [
        f"| {row['trial']} | {row['value']:.4f} | {' | '.join(_shown(row[name]) for name in names)} |" for row in rows
    ]
    write_atomically(path.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
