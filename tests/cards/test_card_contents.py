"""Contents of a card beyond the basics: methods, heads, teachers, cost, attention and positions."""

import re

import numpy
import pytest
from card_records import NBSP, run_records, tables, text_of, write_run
from hub_server.metadata import check_metadata
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from typer.testing import CliRunner

from hf_vit.cards import check_card, write_card
from hf_vit.cli import app
from hf_vit.fingerprint import fingerprint
from hf_vit.words import listed


@pytest.mark.parametrize(
    "name", ["user/my data!", "数据", "a: b\n---\nc", "hf://datasets/u/n", "a/b/c", "-x", "a--b", ""]
)
@pytest.mark.parametrize("revision", [None, "0123abc"])
def test_the_hub_takes_the_metadata(tmp_path, name, revision):
    records = run_records()
    records["data"].update(name=name, revision=revision)
    records["arguments"]["model_name_or_path"] = name
    records["model"]["base_model_revision"] = revision
    errors, warnings, metadata = check_metadata(text_of(tmp_path, records))
    assert not errors and not warnings and not {"datasets", "base_model"} & set(metadata)
    records["data"].update(name="user/digits-8x8", revision="0123abc")
    assert check_metadata(text_of(tmp_path, records))[2]["datasets"] == ["user/digits-8x8"]


def test_each_head_and_their_mean_are_shown(tmp_path):
    records = run_records()
    metrics = records["result"]["metrics"]
    metrics["heads"] = {"class": {"loss": 0.25, "accuracy": 0.875}, "distillation": {"accuracy": 0.75, "loss": 0.5}}
    found, _ = tables(text_of(tmp_path, records))
    assert found["Head", "Accuracy", "Loss (nats)"] == [
        ["Class", f"87.50{NBSP}%", "0.2500"],
        ["Distillation", f"75.00{NBSP}%", "0.5000"],
        ["Mean of both", f"{100 * metrics['accuracy']:.2f}{NBSP}%", "0.09130"],
    ]


def test_teachers_are_named(tmp_path):
    records = run_records()
    records["arguments"]["teacher"] = ["/home/someone/outputs/cnn", "timm/resnet50"]
    text = text_of(tmp_path, records)
    assert "- `cnn`\n- `timm/resnet50`\n" in text and "/home" not in text
    records["teachers"] = [{"name": "timm/resnet50", "revision": "0123abc", "accuracy": 0.9375}]
    text = text_of(tmp_path, records)
    expected = (
        f"- `timm/resnet50` at revision `0123abc`, which reaches 93.75{NBSP}% accuracy on the test split itself\n"
    )
    assert expected in text and "`cnn`" not in text.partition("All arguments")[0]


def test_energy_and_emissions_are_told_to_the_hub_in_grams(tmp_path):
    records = run_records()
    records["cost"] = {"energy_kwh": 0.0125, "co2_kg": 1.5}
    card = ModelCard(text_of(tmp_path, records))
    found, _ = tables(card.text)
    measured = dict(found["Measured", "Value"])
    assert measured["Energy (estimate)"] == f"12.5{NBSP}Wh"
    assert measured["CO2 equivalents (estimate)"] == f"1.5{NBSP}kg"
    assert card.data.co2_eq_emissions["emissions"] == 1500


@pytest.mark.parametrize("other", [None, "validation"])
def test_a_curve_of_the_split_of_the_results_says_so(tmp_path, other):
    records = run_records()
    if other:
        records["data"]["splits"][other] = {"num_examples": 90}
    text = text_of(tmp_path, records)
    assert ("followed the test split itself" in text) == (other is None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source, target", [(["x"], ["y"]), (["donaudampfschifffahrt"] * 40, ["y"])])
def test_the_figure_of_cross_attention_has_room_for_its_tokens(tmp_path, source, target):
    rows = [{"source": source, "target": target, "map": [[1 / len(source)] * len(source)] * len(target)}]
    folder = write_run(tmp_path, {"task": "translation", "card": {"cross_attention": rows}})
    assert "(cross_attention.png)" in write_card(folder).read_text()
    assert check_card(folder) == []


@pytest.mark.parametrize(
    "name, value, said", [("exact_match", 0.5, f"50.00{NBSP}% exact match"), ("bleu", 30.25, "30.25 BLEU")]
)
def test_a_metric_is_written_as_within_a_sentence(tmp_path, name, value, said):
    result = {"split": "test", "metrics": {name: value}}
    arguments = {"metric_for_best_model": name}
    text = text_of(tmp_path, {"task": "translation", "arguments": arguments, "result": result})
    assert f"it reaches {said}." in text


def attention_records(names, grid):
    generator = numpy.random.default_rng(0)
    titles = ("layer 1", "layer 7", "layer 12", "all layers", "pooling")
    maps = {title: generator.random(grid).round(3).tolist() for title in titles}
    return [{"file": name, "maps": maps} for name in names]


def position_records(kind, grid):
    rows, columns = grid
    places = [sorted({0, length // 2, length - 1}) for length in grid]
    shape = {
        "similarity": (len(places[0]) * len(places[1]), rows, columns),
        "bias": (6, 2 * rows - 1, 2 * columns - 1),
        "kernel": (1, 2 * rows - 1, 2 * columns - 1),
    }[kind]
    maps = numpy.random.default_rng(0).uniform(-1, 1, shape).round(3).tolist()
    return {"kind": kind, "grid_size": list(grid), "rows": places[0], "columns": places[1], "maps": maps}


@pytest.mark.parametrize("kind, grid", [("similarity", (14, 14)), ("bias", (1, 12)), ("kernel", (12, 1))])
def test_attention_and_positions_are_drawn_from_the_records(tmp_path, kind, grid):
    images = {"sample_0.png": (320, 240), "sample_1.png": (20, 200)}
    for name, size in images.items():
        Image.radial_gradient("L").resize(size).save(tmp_path / name)
    card = {"attention": attention_records(images, grid), "positions": position_records(kind, grid)}
    records = {
        "task": "image_classification",
        "result": {"samples": [{"file": name, "label": "3", "prediction": "3", "score": 0.9} for name in images]},
        "card": {"files_sha256": fingerprint(tmp_path), **card},
    }
    folder = write_run(tmp_path, records)
    names = ["README.md", "attention.png", "positions.png"]
    write_card(folder)
    first = [(folder / name).read_bytes() for name in names]
    assert all(len(content) < 150_000 for content in first)
    assert all(f"({name})" in first[0].decode() for name in names[1:])
    write_card(folder)
    assert [(folder / name).read_bytes() for name in names] == first
    assert check_card(folder) == []
    records["card"]["attention"][0]["maps"]["pooling"][0][0] = 9.0
    records["card"]["positions"]["maps"][0][0][0] = 0.5
    write_run(tmp_path, records)
    assert check_card(folder) == [f"{name} was not drawn from these records" for name in names[1:]]


HOSTILE = (
    "<script>alert(1)</script> <img src=x> [a](https://evil.example) ![b](c) `d` {{ 7 * 191 }} {% include 'e' %} | *f*"
)
STEERING = "\x1b[2K\x07\u202e"


def test_other_peoples_text_appears_as_it_is(tmp_path):
    names = [f"{HOSTILE} {number}" for number in range(3)]
    yaml = f"a: [1\n---\nlicense: mit\n--- {HOSTILE}"
    records = run_records(names, images_per_class=4)
    records.update(
        command=f"train.py '{HOSTILE}\n```\n<b>'", recipe=HOSTILE, git_commit=HOSTILE, teachers=[{"name": HOSTILE}]
    )
    records["versions"] = {HOSTILE: HOSTILE}
    records["arguments"].update(
        learning_rate=HOSTILE, card_license=yaml, model_name_or_path=HOSTILE, hub_model_id=yaml
    )
    records["hardware"].update(device_name=yaml, mixed_precision=HOSTILE)
    records["model"]["class"] = HOSTILE
    records["data"].update(name=yaml, revision=HOSTILE, license=HOSTILE, unused_files={HOSTILE: {HOSTILE: 2}})
    records["data"]["splits"][HOSTILE] = records["data"]["splits"].pop("train")
    records["result"]["split"] = HOSTILE
    records["card"] = {"tested_transformers": [HOSTILE, HOSTILE]}
    text = text_of(tmp_path, records)
    assert "1337" not in text, "the template executed a value"
    card = ModelCard(text)
    assert card.data.license == yaml and card.data.eval_results[0].dataset_name == yaml
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text)
    inlines = [child for token in tokens for child in token.children or ()]
    html = "".join(token.content for token in [*tokens, *inlines] if token.type in ("html_block", "html_inline"))
    assert set(re.findall(r"</?\w+>", html)) == {"<details>", "</details>", "<summary>", "</summary>"}
    assert "script" not in html and "evil" not in html
    links = [child.attrs["href"] for child in inlines if child.type == "link_open"]
    assert all(link.startswith("https://arxiv.org/") for link in links)
    assert all("/" not in child.attrs["src"] for child in inlines if child.type == "image")
    shown, _ = tables(card.text)
    rows = next(rows for header, rows in shown.items() if header[0] == "Class" and "Recall" in header)
    assert [row[0] for row in rows] == [name[:79].rstrip() + "…" for name in names]


def test_control_characters_reach_neither_cards_nor_terminals(tmp_path):
    records = run_records([f"a{STEERING}{number}" for number in range(3)], images_per_class=4)
    records["data"].update(name=f"b{STEERING}", unused_files={"train": {f"c{STEERING}": 1}})
    records.update(command=f"train.py {STEERING}\n\t--flag")
    text = text_of(tmp_path, records)
    assert not set("\x1b\x07\u202e") & set(text) and r"\x1b" in text and "\n\t--flag" in text
    assert listed([f"d{STEERING}.jpg\n", "e.jpg"], 1) == r"d\x1b[2K\x07\u202e.jpg\n and 1 more"
    (tmp_path / "README.md").write_text(f"{text}{STEERING}")
    assert not set("\x1b\x07\u202e") & set(CliRunner().invoke(app, ["card", str(tmp_path), "--check"]).output)
