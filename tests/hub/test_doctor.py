"""Faults that keep a folder from being published, said in plain words."""

import json
import os
import pickle
import random
import re
import shutil
import string
import zipfile

import numpy as np
import pytest
import torch
from hub_server.saved_run import save_run
from PIL import Image
from transformer_tools import make_model
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)
from typer.testing import CliRunner

from hf_vit import HfTransformerConfig, HfViTConfig, HfViTForImageClassification
from hf_vit.cards import measure, write_card
from hf_vit.cards.card import facts_of
from hf_vit.cards.records import amend_run
from hf_vit.cli import app, main
from hf_vit.fingerprint import fingerprint
from hf_vit.hub import Destination, push
from hf_vit.hub.doctor import examine, published_files
from hf_vit.hub.staging import staged
from hf_vit.isolated.fresh_process import fresh_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole folder. Its records say that the snippets were executed, which would take a process of its own."""
    folder = save_run(tmp_path_factory.mktemp("runs") / "digits", "alice/digits")
    outputs = {example.code: "3: 0.5000" for example in facts_of(folder).examples}
    amend_run(folder, measure.KEY, {"files_sha256": fingerprint(folder), "outputs": outputs})
    write_card(folder)
    return folder


TOKEN = "hf_" + "".join(random.Random(0).choices(string.ascii_letters, k=34))
PRIVATE_KEY = "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n".format(
    "\n".join("".join(random.Random(line).choices(string.ascii_letters + string.digits, k=64)) for line in range(12))
)


class Code:
    """The call that a pickle of it runs when it is opened."""

    def __reduce__(self):
        return os.getcwd, ()


def save_pickle(folder):
    torch.save({}, folder / "notes.dat")


def pickled(protocol):
    return lambda folder: (folder / "notes.txt").write_bytes(pickle.dumps({"weights": Code()}, protocol))


def plain_pickle(name, protocol):
    """A pickle that imports nothing."""
    return lambda folder: (folder / name).write_bytes(pickle.dumps({"weights": [1, 2.5, "x"]}, protocol))


def zipped_pickle(folder):
    with zipfile.ZipFile(folder / "notes.dat", "w") as archive:
        archive.writestr("notes.txt", pickle.dumps([1], 0))


def put_in_checkpoint(folder):
    (folder / "last-checkpoint").mkdir()
    torch.save({"step": 1}, folder / "last-checkpoint" / "optimizer.dat")


def link(name, target):
    def change(folder):
        (folder.parent / "secret.txt").write_text("secret")
        (folder / name).symlink_to(target)

    return change


def put(name, text):
    return lambda folder: (folder / name).write_text(text)


def set_in_config(**values):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def append(name, text):
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    "change, message",
    [
        (append("README.md", "\nSee /home/alice/secret.\n"), r"README.md line \d+ .* path .*: /home/alice/secret"),
        (append("attention.py", "\nDATA = 'C:\\\\Users\\\\alice'\n"), r"attention.py line \d+ .* path"),
        (append("layers.py", f"\nTOKEN = '{TOKEN}'\n"), rf"layers.py line \d+ .*token: {TOKEN[:7]}… \(huggingface-"),
        (put("notes.txt", "-----BEGIN PRIVATE KEY-----\n"), r"notes.txt line 1 .* secret token: .* \(private-key\)"),
        (put("notes.txt", "id: AKIAQYLPMN5HFIQR7XYA"), r"notes.txt line 1 .* secret token: AKIAQYL… \(aws-key-id\)"),
        (link("notes.txt", "../secret.txt"), "notes.txt is a link that leads out of the folder"),
        (link("notes.txt", os.devnull), "notes.txt is a link that leads out of the folder"),
        (link("notes", ".."), "notes is a link that leads out of the folder"),
        (put("a\nb.txt", "x"), r"^a\\nb.txt has a control character in its name"),
        (put("a\x1b[2Kb.txt", "x"), r"^a\\x1b\[2Kb.txt has a control character in its name"),
        (put("a\u202etxt.py", "x = 1"), r"^a\\u202etxt.py has a control character in its name"),
        (plain_pickle("notes.txt", 0), "notes.txt is a pickle"),
        (plain_pickle("notes.json", 1), "notes.json is a pickle"),
        (zipped_pickle, "notes.dat is a pickle"),
        (put_in_checkpoint, "last-checkpoint/optimizer.dat is a pickle"),
        (put("notes.txt", PRIVATE_KEY), r"notes.txt line 1 .* secret token: .* \(private-key\)"),
        (append("losses.py", "\n# alice@example.org knows\n"), "losses.py .* e-mail address: alice@example.org"),
        (save_pickle, "notes.dat is a pickle"),
        *((pickled(protocol), "notes.txt is a pickle") for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        (lambda folder: np.save(folder / "a.npy", np.array([Code()])), "a.npy is a pickle"),
        (lambda folder: np.savez(folder / "a.npz", np.array([Code()])), "a.npz is a pickle"),
        (lambda folder: (folder / "a.txt").write_bytes(b"cos\ngetcwd\n(tR\x00and no more"), "a.txt is a pickle"),
        (lambda folder: (folder / "rng.pkl").write_bytes(b""), "rng.pkl is a pickle"),
        (remove("pooling.py"), "pooling.py is missing, which modeling_hf_vit.py imports"),
        (remove("modeling_hf_vit.py"), r"modeling_hf_vit.py is missing, which auto_map\['AutoModel'\]"),
        (
            set_in_config(auto_map={"AutoConfig": "configuration_hf_vit.HfViTConfig"}),
            "auto_map lacks AutoModelForImageClassification",
        ),
        (remove("model.safetensors"), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x01" * 99), "model.safetensors cannot be read"),
        (remove("config.json"), "config.json is missing"),
        (remove("preprocessor_config.json"), "no image processor"),
        (remove("README.md"), "README.md is missing"),
        (remove("sample_0.png"), "sample_0.png is missing|differs from the records|not in the records"),
        (put("README.md", "# Digits\n"), "metadata has no pipeline_tag"),
        (put("README.md", "---\na: [\n---\n"), "metadata cannot be read"),
        (put("samples.png", "x"), "samples.png was not drawn from these records"),
        (put("notes.zip", "PK\3\4"), "notes.zip is a damaged ZIP archive"),
        (put("model.safetensors.index.json", "{"), "model.safetensors.index.json holds no weight_map"),
        (put("card.yaml", "authors: [\n"), "card.yaml is not valid YAML"),
        (
            put("run.json", '{"task": "translation", "arguments": []}'),
            "run.json is not what a run writes: arguments: .*dictionary",
        ),
        (put("run.json", '{"task": "translation", "data": []}'), "run.json is not what a run writes"),
        (set_in_config(auto_map=[]), "auto_map and custom_pipelines must be JSON objects"),
        (set_in_config(custom_pipelines={"x": {}}), r"custom_pipelines\['x'\] must be 'module.Class', found None"),
        (append("run.json", "x"), "run.json is not valid JSON"),
    ],
)
def test_doctor_says_what_is_wrong(folder, tmp_path, change, message):
    copy = shutil.copytree(folder, tmp_path / "digits")
    change(copy)
    with staged(copy) as stage:
        problems = examine(stage, copy)
    assert any(re.search(message, problem) for problem in problems), problems
    outcome = CliRunner().invoke(app, ["doctor", str(copy), "--no-load"])
    assert outcome.exit_code == 1 and outcome.stdout.splitlines() == problems


def test_doctor_finds_nothing_in_a_whole_folder(folder):
    outcome = CliRunner().invoke(app, ["doctor", str(folder), "--no-load"])
    assert (outcome.exit_code, outcome.stdout) == (0, f"{folder} can be published\n")


def test_doctor_says_that_a_captioner_holds_no_code(tmp_path):
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        HfViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4),
        HfTransformerConfig(vocab_size=9, d_model=16, decoder_layers=1, decoder_attention_heads=2),
    )
    VisionEncoderDecoderModel(config).save_pretrained(tmp_path)
    for half, model_type in (("encoder", "hf_vit"), ("decoder", "hf_transformer")):
        assert any(f"{half} is a '{model_type}' model, whose code" in problem for problem in examine(tmp_path))


@pytest.mark.parametrize(
    "name, content",
    [
        ("program.txt", b"import os\nsystem = os.system\n"),
        ("class.txt", b"class Os:\n    pass\n"),
        ("vocab.txt", b"cat\ndog\nemu\n"),
        ("colon.txt", b"I12\n.5\n"),
        ("version.txt", b"0."),
        ("merges.txt", b"#version: 0.2\ni n\nt h\n"),
    ],
)
def test_a_text_that_begins_as_a_pickle_would_is_none(folder, tmp_path, name, content):
    copy = shutil.copytree(folder, tmp_path / "digits")
    (copy / name).write_bytes(content)
    np.save(copy / "numbers.npy", np.arange(3.0))
    np.savez(copy / "numbers.npz", np.arange(3.0))
    assert examine(copy) == examine(folder)


def test_no_link_out_of_a_folder_is_followed(folder, tmp_path):
    copy, snapshot = shutil.copytree(folder, tmp_path / "digits"), tmp_path / "models--a--b" / "snapshots" / "0f"
    link("notes.txt", "../secret.txt")(copy)
    (copy / "copy.txt").symlink_to("run.json")
    with staged(copy) as stage:
        assert (
            not (stage / "notes.txt").exists() and (stage / "copy.txt").read_text() == (copy / "run.json").read_text()
        )
    with pytest.raises(ValueError, match=r"cannot be published:\n- notes\.txt is a link"):
        push(copy, Destination("alice/digits"))
    # The Hub's cache keeps files once, and snapshots link to them.
    blobs = shutil.copytree(folder, snapshot.parents[1] / "blobs")
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert not [problem for problem in examine(snapshot) if "link" in problem]
    assert "model.safetensors" in published_files(snapshot)


def test_class_names_may_look_like_paths(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "digits")
    names = {str(index): f"/m/01g31{index}" for index in range(10)}
    set_in_config(id2label=names, label2id={name: int(index) for index, name in names.items()})(copy)
    assert not [problem for problem in examine(copy) if "/m/" in problem]


def test_an_author_may_give_an_address(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "digits")
    put("card.yaml", "contact: alice@example.org\n")(copy)
    arguments = json.loads((copy / "run.json").read_text())["arguments"]
    amend_run(copy, "arguments", {**arguments, "card_authors": "Bob, bob@example.org"})
    write_card(copy)
    with staged(copy) as stage:
        assert examine(stage, copy) == []


def test_paths_are_cut_alike_in_the_records_and_on_the_card(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "digits")
    arguments = json.loads((copy / "run.json").read_text())["arguments"]
    new = {
        "teacher": ["/home/alice/my models/cnn", "../alice/vit"],
        "card_limitations": "Tells cats / dogs apart, see /limits .",
    }
    amend_run(copy, "arguments", {**arguments, **new})
    text = write_card(copy).read_text()
    assert "/home" not in text and "../alice" not in text and new["card_limitations"] in text
    with staged(copy) as stage:
        assert examine(stage, copy) == []


@pytest.mark.parametrize("argv", [["doctor", "none"], ["doctor", "file"], ["card", "none"], ["card", "file"]])
def test_the_command_line_shows_no_traceback(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("sys.argv", ["hf-vit", *argv])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert re.search(f"^hf-vit {argv[0]}: error: folder: .*{argv[1]}[^\n]*\n$", capsys.readouterr().err)


def test_a_fresh_process_is_a_stranger(folder, tmp_path):
    other, broken = (shutil.copytree(folder, tmp_path / name) for name in ("other", "broken"))
    model = HfViTForImageClassification.from_pretrained(other)
    torch.nn.init.zeros_(model.classifier.weight)
    model.save_pretrained(other)
    append("layers.py", "\nimport hf_vit\n")(broken)
    expected = HfViTForImageClassification.from_pretrained(folder)
    picture = Image.linear_gradient("L").convert("RGB")
    inputs = ViTImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")
    with fresh_process() as process:
        assert process.load(folder) == (["AutoModel", "AutoModelForImageClassification"], 0.0)
        difference = (model(**inputs).logits - expected(**inputs).logits).abs().max().item()
        assert process.load(other).difference == pytest.approx(difference, rel=1e-4)
        with pytest.raises(RuntimeError, match=r"Error: .*\bhf_vit\b"):
            process.load(broken)
        make_model().save_pretrained(tmp_path / "text")
        heads = ["AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"]
        assert process.load(tmp_path / "text").classes == heads
        ResNetForImageClassification(ResNetConfig(hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "cnn")
        ViTImageProcessor().save_pretrained(tmp_path / "cnn")
        assert process.load(tmp_path / "cnn").classes == ["ResNetForImageClassification"]
