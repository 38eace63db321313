"""Code in a model's folder runs where it is asked for, and nowhere else: every command, with code in every part."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import save
from huggingface_hub import HfApi
from transformers import AutoConfig, AutoTokenizer, BartConfig, BartForConditionalGeneration, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import AutoModelForImageClassification, AutoModelForSeq2SeqLM
from translators import BART, make_tokenizer
from typer.testing import CliRunner

from hf_vit import HfTransformerConfig, HfTransformerForConditionalGeneration, score, train
from hf_vit.cli import app
from hf_vit.demo.answers import load as load_for_demo
from hf_vit.embed import Embeddings, write_embeddings
from hf_vit.explain import picture
from hf_vit.export import export
from hf_vit.fingerprint import fingerprint
from hf_vit.hub import HubError

ROOT = Path(train.__file__).parents[1]
DIGITS = [str(digit) for digit in range(10)]
YES = "1\n" * 50  # what transformers' question takes for a yes
CLASSES = {
    name: f"foreign.Foreign{name.removeprefix('Auto')}"
    for name in (
        "AutoConfig",
        "AutoModel",
        "AutoModelForSeq2SeqLM",
        "AutoModelForImageClassification",
        "AutoBackbone",
        "AutoImageProcessor",
        "AutoProcessor",
    )
}
HF = ["translator", "classifier"]
ALL = [*HF, "our translator", "our classifier"]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Folders of models that need no code of their own, by kind."""
    folder = tmp_path_factory.mktemp("wholes")
    for name, kind in (("classifier", "vit"), ("our classifier", "ours")):
        save(folder / name, kind, DIGITS)
    ours = HfTransformerConfig(vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
                               decoder_ffn_dim=32, max_length=8)  # fmt: skip
    bart = {**BART, "pad_token_id": 0, "max_position_embeddings": 128}
    models = {
        "translator": BartForConditionalGeneration(BartConfig(**bart)),
        "our translator": HfTransformerForConditionalGeneration(ours),
    }
    for name, model in models.items():
        model.generation_config.max_new_tokens = 4
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    for path in folder.glob("* classifier"), folder.glob("* translator"):
        for own in path:
            for code in own.glob("*.py"):
                code.unlink()  # of this package, which is here anyway
    return folder


@pytest.fixture
def ran(tmp_path):
    """The file that foreign code writes."""
    return tmp_path / "ran"


def code(ran):
    return f"open({str(ran)!r}, 'a').write('x')\n"


def merge(path, **values):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def put_model(folder, ran):
    merge(folder / "config.json", model_type="foreign", auto_map=CLASSES)


def put_head(folder, ran):
    """The configuration is of transformers, the class that is asked for is not."""
    merge(folder / "config.json", model_type="clip_vision_model", auto_map={**CLASSES, "AutoConfig": None})
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]["AutoConfig"]
    (folder / "config.json").write_text(json.dumps(config))


def put_classes(folder, ran):
    """Code in the place of classes that are here."""
    merge(folder / "config.json", auto_map=CLASSES)


def put_tokenizer(folder, ran):
    tokenizer = {
        "auto_map": {"AutoTokenizer": [None, "foreign.ForeignTokenizer"]},
        "tokenizer_class": "ForeignTokenizer",
    }
    merge(folder / "tokenizer_config.json", **tokenizer)


def put_target_tokenizer(folder, ran):
    target = folder / "target_tokenizer"
    make_tokenizer().save_pretrained(target)
    merge(folder / "tokenizer_config.json", target_tokenizer="target_tokenizer")
    put_tokenizer(target, ran)
    (target / "foreign.py").write_text(code(ran))


def put_processor(folder, ran):
    merge(
        folder / "preprocessor_config.json",
        auto_map={"AutoImageProcessor": "foreign.ForeignImageProcessor", "AutoProcessor": "foreign.ForeignProcessor"},
        image_processor_type="ForeignImageProcessor",
    )


def put_pipeline(folder, ran):
    own = {"impl": "foreign.ForeignPipeline", "pt": list(CLASSES), "type": "text"}
    merge(folder / "config.json", custom_pipelines={"translation": own, "image-classification": own})


def put_generate(folder, ran):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{code(ran)}def generate(model, *a, **b): pass\n")
    merge(folder / "generation_config.json", custom_generate=str(folder), max_new_tokens=4)


def adapter(folder, base):
    merge(
        folder / "adapter_config.json",
        base_model_name_or_path=str(base),
        peft_type="LORA",
        target_modules=["q_proj", "query"],
        auto_mapping={"base_model_class": "ForeignModel", "parent_library": "foreign"},
    )
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": Opened(str(folder / ".." / "ran"))}))


def put_adapter(folder, ran):
    adapter(folder, folder)


def put_adapter_alone(folder, ran):
    """A folder that holds nothing but an adapter, whose model is in another one, with code."""
    base = Path(shutil.copytree(folder, folder.with_name("base")))
    put_model(base, ran)
    (base / "foreign.py").write_text(code(ran))
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    adapter(folder, base)


class Opened:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (code(self.path),)


def put_pickle(folder, ran):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Opened(ran)}, folder / "pytorch_model.bin")


def put_record(folder, ran):
    """A record whose task is a folder with code."""
    task = folder / "foreign_task"
    task.mkdir()
    for name in ("task", "record", "card", "arguments", "measure"):
        (task / f"{name}.py").write_text(code(ran))
    (folder / "README.md").write_text("x")
    merge(folder / "run.json", task=str(task))


PARTS = {
    "model": (put_model, HF),
    "head": (put_head, HF),
    "classes": (put_classes, ALL),
    "tokenizer": (put_tokenizer, ["translator"]),
    "target tokenizer": (put_target_tokenizer, ["translator"]),
    "processor": (put_processor, ["classifier"]),
    "pipeline": (put_pipeline, HF),
    "generate": (put_generate, ["translator", "our translator"]),
    "adapter": (put_adapter, HF),
    "adapter alone": (put_adapter_alone, HF),
    "pickle": (put_pickle, ALL),
    "record": (put_record, HF),
}
CASES = [pytest.param(part, kind, id=f"{part} of {kind}") for part, (_, kinds) in PARTS.items() for kind in kinds]


@pytest.fixture
def hostile(wholes, tmp_path, ran):
    def make(part, kind):
        folder = Path(shutil.copytree(wholes / kind, tmp_path / "hostile"))
        (folder / "foreign.py").write_text(code(ran))
        PARTS[part][0](folder, ran)
        return folder

    return make


def call(*words):
    outcome = CliRunner().invoke(app, [str(word) for word in words], input=YES)
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    if outcome.exit_code:
        raise ValueError(outcome.output)


def commands(folder, kind, tmp_path, monkeypatch):
    """Calls on a folder of each command that promises to run nothing, by its name."""
    monkeypatch.setattr(HfApi, "snapshot_download", lambda *args, **kwargs: str(folder))
    for name in ("draw_explanation", "draw_alignment"):  # which takes long and loads nothing
        monkeypatch.setattr(picture, name, lambda explained: b"x")
    tiny = ["--num_train_epochs=1", "--card_num_samples=0", "--dry_run", "--output_dir", tmp_path / "run"]
    score_to = ["--output_dir", tmp_path / "score", "--overwrite_output_dir"]
    found = {
        "pull": lambda: call("pull", "someone/model"),
        "doctor": lambda: call("doctor", folder, "--no-load"),
        "card --check": lambda: call("card", folder, "--check"),
        "convert": lambda: call("convert", folder, tmp_path / "converted", "--to", "transformers"),
        "convert to ours": lambda: call("convert", folder, tmp_path / "ours"),
        "demo": lambda: load_for_demo(str(folder)),
    }
    if kind.startswith("our"):
        # Writing the formats takes long and loads nothing.
        monkeypatch.setattr(export, "_write_image", lambda *args: None)
        monkeypatch.setattr(export, "translator_parts", lambda model: [])
        found["export"] = lambda: call("export", folder, tmp_path / "exported", "--format", "torch_export")
        found["cost"] = lambda: call("cost", folder)
        found["doctor --speed"] = lambda: call("doctor", folder, "--speed")
        found["doctor --refresh-code"] = lambda: call("doctor", folder, "--refresh-code", "--no-load")
    if kind.endswith("translator"):
        text = tmp_path / "test.csv"
        text.write_text("de,en\nein,one\nzwei,two\n")
        data = ["--source_lang=de", "--target_lang=en"]
        flags = ["--recipe=dates", f"--train_file={text}", f"--test_file={text}", *data, *tiny]
        found |= {
            "translate": lambda: call("translate", folder),
            "translate a text": lambda: call("translate", folder, "ein"),
            "predict": lambda: call("predict", folder, text),
            "explain": lambda: call("explain", folder, "ein", "--output", tmp_path / "explained.png", "--overwrite"),
            "score": lambda: score_main(folder, "--task=translation", f"--test_file={text}", *data, *score_to),
            "train": lambda: train_main(f"--model_name_or_path={folder}", *flags),
            "train --tokenizer_name": lambda: train_main(f"--tokenizer_name={folder}", *flags),
        }
    else:
        flags = ["--dataset_name=sklearn_digits", "--max_train_samples=20", "--max_eval_samples=10", *tiny]
        digits = ["--dataset_name=sklearn_digits", "--max_eval_samples=4"]
        small = "--config_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16"
        image, explained = ROOT / "model_cards" / "digits" / "sample_0.png", tmp_path / "explained.png"
        known = Embeddings([str(image)], np.ones((1, 16), np.float32), str(folder))
        vectors = write_embeddings(known, tmp_path / "known.npy")
        found |= {
            "predict": lambda: call("predict", folder, image),
            "embed": lambda: call("embed", folder, image, "--output", tmp_path / "new.npy", "--overwrite"),
            "search": lambda: call("search", vectors, image),
            "explain": lambda: call("explain", folder, image, "--output", explained, "--overwrite"),
            "score": lambda: score_main(folder, *digits, *score_to),
            "train": lambda: train_main(f"--model_name_or_path={folder}", *flags),
            "train --teacher": lambda: train_main(f"--teacher={folder}", "--image_size=24", small, *flags),
        }
    return found


def score_main(folder, *words):
    score.main([f"--model_name_or_path={folder}", *map(str, words)])


def train_main(*words):
    train.main([str(word) for word in words])


# What cannot be done with a folder that holds no code either.
REFUSED = {
    "doctor", "card --check", "doctor --refresh-code",
    "convert to ours of our translator", "convert to ours of our classifier",
    "embed of classifier", "search of classifier", "explain of classifier",
}  # fmt: skip
RUN_CODE = {"push"}  # what is said to run a folder's code, whatever is asked for; and what starts the others
STARTS_OTHERS = {"study"}


def test_no_verb_is_forgotten(wholes, tmp_path, monkeypatch):
    found = {name.split()[0] for kind in ALL for name in commands(wholes / kind, kind, tmp_path, monkeypatch)}
    assert found | RUN_CODE | STARTS_OTHERS == {
        each.name or each.callback.__name__ for each in app.registered_commands
    }


@pytest.mark.parametrize("kind", ALL)
def test_every_command_takes_a_folder_without_code(wholes, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(YES))
    folder = shutil.copytree(wholes / kind, tmp_path / "whole")
    for name, command in commands(folder, kind, tmp_path, monkeypatch).items():
        if name in REFUSED or f"{name} of {kind}" in REFUSED:
            with pytest.raises(ValueError):
                command()
        else:
            command()


@pytest.mark.parametrize(("part", "kind"), CASES)
def test_no_command_runs_code_of_a_folder(hostile, ran, part, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(YES))
    folder = hostile(part, kind)
    for name, command in commands(folder, kind, tmp_path, monkeypatch).items():
        try:
            command()
        except (Exception, SystemExit) as error:
            assert not isinstance(error, (AttributeError, NameError)), (name, error)
        assert not ran.exists(), f"{name} ran it"


@pytest.mark.parametrize(
    ("part", "kind", "load"),
    [
        ("model", "translator", AutoConfig),
        ("head", "translator", AutoModelForSeq2SeqLM),
        ("classes", "classifier", AutoModelForImageClassification),
        ("tokenizer", "translator", AutoTokenizer),
        ("processor", "classifier", AutoImageProcessor),
        ("generate", "translator", AutoModelForSeq2SeqLM),
        ("adapter alone", "translator", AutoModelForSeq2SeqLM),
    ],
)
def test_the_code_would_run_if_it_were_asked_for(hostile, ran, part, kind, load):
    folder = hostile(part, kind)
    try:
        load.from_pretrained(folder, trust_remote_code=True)
    except Exception:
        assert part != "generate"
    assert ran.exists()


def test_the_pipeline_would_run_if_it_were_asked_for(hostile, ran):
    with pytest.raises(Exception):  # noqa: B017 - the code holds no pipeline
        pipeline("translation", model=str(hostile("pipeline", "translator")), trust_remote_code=True)
    assert ran.exists()


def test_transformers_takes_its_answer_from_the_data_and_the_command_does_not(hostile, ran):
    folder = hostile("model", "translator")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    options = {"input": YES, "capture_output": True, "text": True, "env": environment}
    words = [sys.executable, "-m", "hf_vit.cli", "translate", str(folder)]
    outcome = subprocess.run(words, **options, check=False)
    assert outcome.returncode and "trust_remote_code" in outcome.stderr and not ran.exists()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception):  # noqa: B017 - it holds no configuration
        patch.setattr(sys, "stdin", io.StringIO(YES))
        AutoConfig.from_pretrained(folder)
    assert ran.exists()


@pytest.mark.parametrize("kind", ALL)
def test_a_model_that_is_not_the_one_of_its_record_is_refused(wholes, kind, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(wholes / kind, tmp_path / "whole"))
    task = "translation" if kind.endswith("translator") else "image_classification"
    merge(folder / "run.json", task=task, card={"files_sha256": fingerprint(folder)})
    found = commands(folder, kind, tmp_path, monkeypatch)
    checked = [name for name in ("pull", "score", "translate") if name in found]
    assert "pull" in checked and "score" in checked
    for name in checked:
        found[name]()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    for name in checked:
        with pytest.raises((ValueError, HubError), match=re.escape(str(folder)) + ".* SHA-256"):
            found[name]()
