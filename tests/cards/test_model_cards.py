import json
import re
from itertools import pairwise

import pytest
import torch
from card_records import DIGITS, NBSP, run_records, tables, text_of, write_run
from huggingface_hub import ModelCard
from PIL import Image

from hf_vit.cards import check_card, write_card
from hf_vit.cards.citations import of_methods

PER_CLASS = ("Class", "Precision", "Recall", "F1", "Images")


def test_metadata_holds_the_recorded_results(tmp_path):
    records = run_records()
    data = ModelCard(text_of(tmp_path, records)).data
    recorded = {name: value for name, value in records["result"]["metrics"].items() if isinstance(value, float)}
    assert {result.metric_type: result.metric_value for result in data.eval_results} == recorded
    assert {(result.task_type, result.dataset_split) for result in data.eval_results} == {
        ("image-classification", "test")
    }
    assert (data.pipeline_tag, data.library_name, data.license) == (
        "image-classification",
        "transformers",
        "apache-2.0",
    )
    assert data.datasets is None, "only data with a revision is known to be on the Hub"


def test_body_shows_the_recorded_numbers(tmp_path):
    records = run_records()
    text = text_of(tmp_path, records)
    found, _ = tables(text)
    assert ["Accuracy", f"{100 * records['result']['metrics']['accuracy']:.2f}{NBSP}%"] in found["Metric", "Value"]
    assert ["Training", f"42.3{NBSP}s"] in found["Measured", "Value"]
    assert found[PER_CLASS] == [
        [score["label"], *(f"{100 * score[name]:.2f}{NBSP}%" for name in ("precision", "recall", "f1")), "36"]
        for score in records["result"]["metrics"]["per_class"]
    ]


def test_same_records_give_the_same_bytes(tmp_path):
    folder = write_run(tmp_path, run_records())
    names = ["README.md", "curves.png", "confusion_matrix.png", "reliability.png"]
    write_card(folder)
    first = [(folder / name).read_bytes() for name in names]
    assert all(len(content) < 150_000 for content in first)
    write_card(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert check_card(folder) == []


@pytest.mark.parametrize("number, other", [("42.3", "12.3"), ("812,554", "812,555"), ("0.0913", "0.0912")])
def test_check_names_an_edited_number(tmp_path, number, other):
    folder = write_run(tmp_path, run_records())
    path = write_card(folder)
    text = path.read_text()
    assert number in text
    path.write_text(text.replace(number, other))
    problems = check_card(folder)
    assert problems and all(other in problem for problem in problems)


def test_check_notices_what_is_left_over_from_other_records(tmp_path):
    records = run_records()
    folder = write_run(tmp_path, records)
    write_card(folder)
    records["epochs"][-1]["metrics"]["accuracy"] = 0.5
    write_run(tmp_path, records)
    assert check_card(folder) == ["curves.png was not drawn from these records"]
    (folder / "curves.png").unlink()
    assert check_card(folder) == ["curves.png is missing"]


@pytest.mark.parametrize("removed", [None, "result", "data", "model", "epochs", "arguments", "hardware", "versions"])
def test_sparse_records_leave_no_trace(tmp_path, removed):
    records = run_records(num_epochs=1)
    if removed is None:
        records = {"task": "image_classification"}
    else:
        del records[removed]
    records.setdefault("result", {}).setdefault("metrics", {})["f1_macro"] = float("nan")
    folder = write_run(tmp_path, records)
    text = write_card(folder).read_text()
    assert not re.search(r"\b(None|null|nan|inf|Undefined)\b|\{%|\[More| \(\)|\|  \|", text)
    lines = [line for line in text.splitlines() if line]
    headings = ["#" * 6 if line.startswith("## ") else line for line in [*lines, "## "]]
    assert not any(now == then == "#" * 6 for now, then in pairwise(headings)), "a section without content"
    assert check_card(folder) == []


NASTY_NAMES = [
    "a|b", "<script>alert(1)</script>", "`code`", "[link](https://evil.example)", "**bold**", "_em_ snake_case",
    "$x^2$", "&amp; &lt;", "https://evil.example", "back\\slash |", "~~gone~~", "<!-- comment", "![i](x)", "# title",
]  # fmt: skip


def test_class_names_are_shown_as_written(tmp_path):
    text = text_of(tmp_path, run_records([*NASTY_NAMES, "word " * 60]))
    found, kinds = tables(text)
    shown = [row[0] for row in found[PER_CLASS]]
    assert shown[:-1] == NASTY_NAMES
    assert len(shown[-1]) == 80 and shown[-1].endswith("…")
    assert not kinds & {"html_inline", "link_open", "image", "em_open", "s_open"}
    assert "https://evil" not in text, "a reader that links bare addresses would link it"


def test_a_class_without_examples_has_no_scores(tmp_path):
    records = run_records()
    records["result"]["metrics"]["per_class"][3] = {"label": "3", "precision": 0, "recall": 0, "f1": 0, "support": 0}
    found, _ = tables(text_of(tmp_path, records))
    assert [row[0] for row in found[PER_CLASS]] == [name for name in DIGITS if name != "3"]


def test_thousand_classes_fit(tmp_path):
    folder = write_run(tmp_path, run_records([f"class {i}" for i in range(1000)], images_per_class=5))
    text = write_card(folder).read_text()
    assert len(text.splitlines()) < 400
    assert not (folder / "confusion_matrix.png").exists()
    recorded = {
        row["label"]: row["f1"]
        for row in json.loads((folder / "run.json").read_text())["result"]["metrics"]["per_class"]
    }
    shown = [recorded[row[0]] for row in tables(text)[0][PER_CLASS]]
    assert len(shown) < 30 and (max(shown), min(shown)) == (max(recorded.values()), min(recorded.values()))


def test_nothing_private_is_told(tmp_path):
    text = text_of(tmp_path, run_records())
    assert "/home" not in text and "hf_secret" not in text
    assert "--output_dir digits" in text


def test_author_text_and_its_errors(tmp_path):
    folder = write_run(tmp_path, run_records(), card__yaml="intended_use: Reading postcodes.\nlicense: mit\n")
    card = ModelCard.load(write_card(folder))
    assert card.data.license == "mit" and "Reading postcodes." in card.text
    run = run_records()
    run["arguments"]["card_intended_use"] = "Reading meters."  # typed, which wins over the file
    (tmp_path / "typed").mkdir()
    typed = write_run(tmp_path / "typed", run, card__yaml="intended_use: Reading postcodes.\nlicense: mit\n")
    card = ModelCard.load(write_card(typed))
    assert card.data.license == "mit" and "Reading meters." in card.text and "postcodes" not in card.text
    assert check_card(typed) == []
    (folder / "card.yaml").write_text("authors: [\n")
    with pytest.raises(ValueError, match=r"card.yaml is not valid YAML: .* line 2"):
        write_card(folder)
    (folder / "card.yaml").write_text("intended_uses: x\n")
    with pytest.raises(ValueError, match="'intended_uses'; did you mean 'intended_use'"):
        write_card(folder)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "holds no run.json"),
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("{}", "its task"),
        ('{"task": "cooking"}', "'cooking'.*image_classification"),
        ('{"task": "translation", "data": []}', "not what a run writes"),
    ],
)
def test_bad_records(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_citations_are_of_the_methods_used(tmp_path):
    config = {"model_type": "hf_vit", "pooling": ["cls", "attention"], "position_embedding": "rope_2d"}
    text = text_of(tmp_path, run_records())
    assert "1711.05101" in text and "2010.11929" not in text, "without a configuration only the training is known"
    found = [paper.arxiv for paper in of_methods(config, {"weight_decay": 0.0})]
    assert found == ["2010.11929", "2508.10104", "2106.04560"]


def test_snippets_are_executed_and_cost_is_measured(tmp_path, monkeypatch):
    """Also where the folder of the user and of the Hub's caches cannot be written."""
    from transformers import ViTImageProcessor

    from hf_vit import HfViTConfig, HfViTForImageClassification
    from hf_vit.explain import attention_maps, position_similarity

    size, patch, width, depth, mlp, classes = 32, 8, 16, 2, 32, 10
    config = HfViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=mlp, image_size=size,
        patch_size=patch, num_register_tokens=1, id2label=dict(enumerate(DIGITS)),
    )  # fmt: skip
    records = run_records()
    records["arguments"]["hub_model_id"] = "someone/digits"
    records["result"]["samples"] = [{"file": "sample_0.png", "label": "3", "prediction": "3", "score": 0.9}]
    folder = write_run(tmp_path, records)
    model = HfViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": size, "width": size}, do_convert_rgb=True)
    processor.save_pretrained(folder)
    image = Image.linear_gradient("L").resize((8, 8))
    image.save(folder / "sample_0.png")

    (tmp_path / "file").touch()
    for name in ("HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file" / "home"))
    text = write_card(folder).read_text()
    logits = model(**processor(image, return_tensors="pt")).logits[0]
    score, index = logits.softmax(-1).max(-1)
    assert text.count(f"```\n{index.item()}: {score.item():.4f}\n") == 2, "the Auto classes and the pipeline"

    measured = json.loads((folder / "run.json").read_text())["card"]
    patches = (size // patch) ** 2
    tokens = patches + 2
    layer = 2 * tokens * width * (3 * width + width + 2 * mlp) + 2 * 2 * tokens * tokens * width
    assert measured["flops"] == 2 * patches * 3 * patch**2 * width + depth * layer + 2 * width * classes
    assert (measured["input_shape"], measured["num_patches"], measured["num_prefix_tokens"]) == ([3, 32, 32], 16, 2)
    attention, positions = measured["attention"], measured["positions"]
    maps, rollout = attention_maps(model, processor(image, return_tensors="pt")["pixel_values"])
    expected = {"layer 1": 16 * maps[0, 0].mean(0), "layer 2": 16 * maps[0, 1].mean(0), "all layers": 16 * rollout[0]}
    close = {"rtol": 5e-3, "atol": 1e-3}  # three digits are recorded
    torch.testing.assert_close(
        {name: torch.tensor(grid) for name, grid in attention[0]["maps"].items()}, expected, **close
    )
    similarity = torch.tensor(positions["maps"]).view(4, 4, 4, 4)
    torch.testing.assert_close(similarity, position_similarity(model), **close)
    assert all((folder / name).is_file() and f"({name})" in text for name in ("attention.png", "positions.png"))
    assert check_card(folder) == []
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[::-1])
    assert any("model's files" in problem for problem in check_card(folder))
