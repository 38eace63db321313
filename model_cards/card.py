"""Renders a run's facts into README.md, and checks that a README.md is what the records say."""

import difflib
import os
import re
import tempfile
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .facts import CardFacts
from .figures import learning_curves
from .format import FILTERS

CARD_FILE = "README.md"
FIGURES = {"curves.png": learning_curves}
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def write_card(folder: str | os.PathLike) -> Path:
    """Draws the figures and writes README.md from the records in `folder` (`run.json`, `config.json`).

    Each file is replaced in one step: a card that stood there before stays whole until the new one is.

    Returns:
        The path of the README.md.

    Raises:
        ValueError: the folder holds no readable records, or the records are of a task that has no template.
    """
    folder = Path(folder)
    facts = CardFacts.from_folder(folder)
    images = draw(facts)
    content = render(facts, list(images))
    for filename, image in images.items():
        _replace(folder / filename, image)
    return _replace(folder / CARD_FILE, content.encode("utf-8"))


def check_card(folder: str | os.PathLike) -> list[str]:
    """What in `folder`'s README.md or figures does not come from the records; empty when everything does.

    The card is rendered again and compared byte for byte. Each line that differs is one entry that names the numbers
    found in the card and not in the records.

    Raises:
        ValueError: as `write_card`, or the folder holds no README.md.
    """
    folder = Path(folder)
    facts = CardFacts.from_folder(folder)
    if not (folder / CARD_FILE).is_file():
        raise ValueError(f"folder: {folder} holds no {CARD_FILE}")
    images = draw(facts)
    missing = [f"{filename} is missing" for filename in images if not (folder / filename).is_file()]
    return missing + _differences((folder / CARD_FILE).read_bytes().decode("utf-8"), render(facts, list(images)))


def draw(facts: CardFacts) -> dict[str, bytes]:
    """PNG images by file name: the figures that the records hold numbers for."""
    images = {filename: figure(facts) for filename, figure in FIGURES.items()}
    return {filename: image for filename, image in images.items() if image is not None}


def render(facts: CardFacts, figures: list[str]) -> str:
    """The whole text of the card, metadata block included, with the named figures.

    The same facts give the same text, byte for byte.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    try:
        template = environment.get_template(f"{facts.task}.md.j2")
    except jinja2.TemplateNotFound:
        known = sorted(name.removesuffix(".md.j2") for name in environment.list_templates() if name != "base.md.j2")
        raise ValueError(f"task: found {facts.task!r}, a card can be written for {', '.join(known)}") from None
    body = template.render(facts=facts, figures=figures)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return str(ModelCard(f"---\n{metadata(facts).to_yaml()}\n---\n\n{body}\n"))


def metadata(facts: CardFacts) -> ModelCardData:
    """The block the Hub reads: licence, tags, data set, and every measured metric as it stands in the records."""
    task = facts.task.replace("_", "-")
    dataset = facts.data_name if facts.data_revision and _is_hub_id(facts.data_name) else None
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset or re.sub(r"[^\w.-]+", "-", facts.data_name.lower()),
            dataset_name=facts.data_name,
            dataset_split=facts.split,
            dataset_revision=facts.data_revision,
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
        base_model=facts.base_model if _is_hub_id(facts.base_model) else None,
        datasets=[dataset] if dataset else None,
        metrics=[metric.name for metric in facts.metrics if metric.name in ("accuracy",)] or None,
        tags=[task, "hf_vit"],
        model_name=facts.name,
        eval_results=results or None,
    )


def _is_hub_id(name: str | None) -> bool:
    return name is not None and _HUB_ID.fullmatch(name) is not None


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


def _replace(path: Path, content: bytes) -> Path:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are private; a card is not
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path
