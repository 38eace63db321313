"""Renders a run's facts into README.md, and checks that a README.md is what the records say."""

import difflib
import os
import re
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_vit import tasks
from hf_vit.cards import measure, records
from hf_vit.cards.facts import CardFacts
from hf_vit.cards.figures import digest_of
from hf_vit.cards.format import FILTERS
from hf_vit.files import read_utf8, write_atomically
from hf_vit.fingerprint import fingerprint
from hf_vit.record import RUN_FILE
from hf_vit.words import printable

CARD_FILE = "README.md"
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


def write_card(folder: str | os.PathLike) -> Path:
    """Draws the figures and writes README.md from the records in `folder`.

    The records are `run.json` and, where present, `config.json`, `preprocessor_config.json` and the author's
    `card.yaml` (see `records.AUTHOR_FIELDS`). A model that has not been measured for its card since its files changed
    is run once, which **executes the code in the folder**, and what it answered is kept in `run.json` under `card`.
    Each file is replaced in one step: a card that stood there before stays whole until the new one is.

    Returns:
        The path of the README.md.

    Raises:
        ValueError: the folder holds no readable records, or the records are of a task that has no template.
    """
    folder = Path(folder)
    facts = facts_of(folder)
    if (folder / records.CONFIG_FILE).is_file() and not measure.is_measured(folder, facts):
        measured = measure.measure(folder, facts)
        if measured is not None:
            records.amend_run(folder, measure.KEY, measured)
            facts = facts_of(folder)
    images = {filename: draw(facts) for filename, draw in facts.figures.items()}
    images = {filename: image for filename, image in images.items() if image is not None}
    content = render(facts)
    for filename, image in images.items():
        write_atomically(folder / filename, image)
    return write_atomically(folder / CARD_FILE, content.encode("utf-8"))


def check_card(folder: str | os.PathLike) -> list[str]:
    """Parts of `folder`'s README.md or figures that do not come from the records; empty when everything does.

    The card is rendered again and compared byte for byte. Each line that differs is one entry that names the numbers
    found in the card and not in the records. Runs nothing from the folder.

    Raises:
        ValueError: as `write_card`, or the folder holds no README.md.
    """
    folder = Path(folder)
    facts = facts_of(folder)
    if not (folder / CARD_FILE).is_file():
        raise ValueError(f"folder: {folder} holds no {CARD_FILE}")
    problems = []
    has_weights = any(folder.glob("*.safetensors"))  # a card may be kept apart from its model
    if has_weights and facts.measured.model_fields_set and facts.measured.files_sha256 != fingerprint(folder):
        problems.append("the model's files are not those that the card's snippets were executed with")
    for filename, draw in facts.figures.items():
        digest = draw.digest(facts)
        if digest and not (folder / filename).is_file():
            problems.append(f"{filename} is missing")
        elif digest and digest_of(folder / filename) != digest:
            problems.append(f"{filename} was not drawn from these records")
    return problems + _differences(read_utf8(folder / CARD_FILE), render(facts))


def facts_of(folder: Path) -> CardFacts:
    """The facts of the run in `folder`, of the class that its task has.

    Raises:
        ValueError: as `write_card`.
    """
    found = records.Records.from_folder(folder)
    task = found.run.task
    if task not in tasks.names():
        raise ValueError(f"task: found {task!r} in {RUN_FILE}, a card can be written for {', '.join(tasks.names())}")
    return tasks.class_of(task, "card", CardFacts).from_records(found)


def render(facts: CardFacts) -> str:
    """The whole text of the card, metadata block included. The same facts give the same text, byte for byte."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([tasks.folder_of(facts.task), Path(__file__).parent]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    figures = [filename for filename, draw in facts.figures.items() if draw.digest(facts)]
    body = environment.get_template("card.md.j2").render(facts=facts, figures=figures)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return str(ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}\n"))


def metadata(facts: CardFacts) -> ModelCardData:
    """The block the Hub reads: licence, tags, data set, and every measured metric as it stands in the records."""
    task = facts.pipeline_task
    dataset = _hub_id(facts.data_name, facts.data.revision)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset or re.sub(r"[^a-z0-9_.-]+", "-", facts.data_name.lower()),
            dataset_name=printable(facts.data_name, keep="\n\t"),
            dataset_split=facts.split,
            dataset_revision=facts.data.revision,
            metric_type=metric.name,
            metric_name=metric.label,
            metric_value=metric.value,
        )
        for metric in facts.metrics
        if facts.data_name
    ]
    return ModelCardData(
        license=facts.license,
        library_name="transformers",
        pipeline_tag=task,
        base_model=_hub_id(facts.base_model, facts.model.base_model_revision),
        datasets=[dataset] if dataset else None,
        metrics=facts.hub_metrics or None,
        tags=[task, "hf_vit"],
        model_name=facts.name,
        eval_results=results or None,
        co2_eq_emissions=_emissions(facts),
    )


def _hub_id(name: str | None, revision: str | None) -> str | None:
    """The name, if it can be that of a repository: with any other the Hub refuses the whole card. What came from the
    Hub has a revision; a name without may be a local folder's."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if revision else None


def _emissions(facts: CardFacts) -> dict | None:
    if facts.co2 is None:
        return None
    emissions = {
        "emissions": 1000 * facts.co2,  # grams
        "source": "codecarbon",
        "training_type": "fine-tuning" if facts.base_model else "pre-training",
        "hardware_used": facts.hardware.device_name,
    }
    return {name: value for name, value in emissions.items() if value is not None}


def _differences(found: str, expected: str) -> list[str]:
    if found == expected:
        return []
    found_lines, expected_lines = found.splitlines(), expected.splitlines()
    problems = []
    matcher = difflib.SequenceMatcher(a=expected_lines, b=found_lines, autojunk=False)
    for change, start, end, found_start, found_end in matcher.get_opcodes():
        if change == "equal":
            continue
        known = _NUMBER.findall("\n".join(expected_lines[start:end]))
        for line in range(found_start, found_end):
            numbers = [number for number in _NUMBER.findall(found_lines[line]) if number not in known]
            fault = f"not in the records: {', '.join(numbers)}" if numbers else "differs from the records"
            problems.append(f"{CARD_FILE} line {line + 1}: {fault}: {found_lines[line].strip()!r}")
        if found_start == found_end:
            problems.append(f"{CARD_FILE} line {found_start + 1}: missing before it: {expected_lines[start]!r}")
    return problems or [f"{CARD_FILE} has other line endings than the card made from the records"]
