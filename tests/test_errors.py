"""Errors as programs tell them: one line, an exit status, and a traceback on demand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import score, train
from hf_vit.cards.records import read_author_file
from hf_vit.cli import main
from hf_vit.errors import DEBUG_VARIABLE, message_of, told
from hf_vit.extras import MissingExtraError
from hf_vit.files import check_model_source, read_object, read_utf8
from hf_vit.hub import HubError
from hf_vit.recipes import load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ended(monkeypatch, capsys):
    """`ended(raise_it, *words)`: exit status and standard error of a program that does so."""
    monkeypatch.setenv(DEBUG_VARIABLE, "")

    def run(body, *words):
        monkeypatch.setattr("sys.argv", ["some/folder/program.py", *words])
        with pytest.raises(SystemExit) as stop, told():
            body()
        return stop.value.code, capsys.readouterr().err

    return run


def raising(error):
    def body():
        raise error

    return body


TOLD = {
    "value": (ValueError("--size must be >= 1, found 0"), "--size must be >= 1, found 0"),
    "file": (FileNotFoundError(2, "No such file or directory", "a.csv"), "a.csv: No such file or directory"),
    "full disk": (OSError("No space left on device"), "No space left on device"),
    "loss": (FloatingPointError("step 3: the loss is nan"), "step 3: the loss is nan"),
    "hub": (HubError("x: cannot be published:\n- a\n- b\nrun\n\n    hf-vit push"),
            "x: cannot be published: a; b run hf-vit push"),
    "network": (HfHubHTTPError.__bases__[0]("no route"), "no route"),  # an error of httpx
    "extra": (MissingExtraError("x is not installed"), "x is not installed"),
    "weights": (SafetensorError("header too large"), "header too large"),
    "dataset": (datasets.exceptions.DefunctDatasetError("it is gone"), "it is gone"),
    "silent": (ValueError(), "ValueError"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_an_error_is_one_line_and_status_2(ended, name):
    error, line = TOLD[name]
    assert ended(raising(error)) == (2, f"program.py: error: {line}\n")


@pytest.mark.parametrize("variable", ["HOME", "HF_HOME", "HF_DATASETS_CACHE"])
def test_a_cache_that_cannot_be_written_is_named_before_training(ended, tmp_path, monkeypatch, variable):
    """In place of that there was no data in the folder."""
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    home = tmp_path / "file" / "home"
    monkeypatch.setenv(variable, str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")  # as it is read at the start
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    words = ["--dataset_name", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run"), "--overwrite_output_dir"]
    status, line = ended(lambda: train.main(words))
    assert status == 2 and line.count("\n") == 1 and f"{home}" in line
    assert f"set {variable.replace('HOME', 'HF_HOME').replace('HF_HF_', 'HF_')} to a folder that can" in line
    assert not (tmp_path / "run").exists()


def test_the_cause_of_an_error_of_datasets_is_told(ended):
    def body():
        try:
            raise KeyError("no column 'text'")
        except KeyError as cause:
            raise datasets.exceptions.DatasetGenerationError("An error occurred.") from cause

    assert ended(body)[1] == "program.py: error: An error occurred: \"no column 'text'\"\n"


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("sample 0 (cat.jpg) is damaged")


def test_an_error_of_a_loaders_worker_is_told_without_its_traceback():
    with pytest.raises(ValueError, match="Original Traceback") as error:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert message_of(error.value) == "sample 0 (cat.jpg) is damaged"


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_traceback_is_shown_on_demand(ended, monkeypatch, by):
    if by == "variable":
        monkeypatch.setenv(DEBUG_VARIABLE, "1")
    status, text = ended(raising(ValueError("bad")), *(["--debug", "x"] if by == "flag" else ["x"]))
    assert status == 2 and "Traceback" in text and text.endswith("\nprogram.py: error: bad\n")
    assert sys.argv[1:] == ["x"] and os.environ[DEBUG_VARIABLE] == "1"


def test_faults_keep_their_traceback_and_interruptions_are_told(ended):
    with pytest.raises(TypeError, match=r"^a fault$"), told():
        raise TypeError("a fault")
    assert ended(raising(KeyboardInterrupt)) == (130, "program.py: interrupted\n")
    assert ended(raising(SystemExit(143))) == (143, "")


def test_a_reader_that_leaves_ends_a_program_quietly(tmp_path):
    """And what training refuses is the last line of its output, with status 2."""
    (tmp_path / "program.py").write_text("from hf_vit.errors import told\nwith told():\n    print('x\\n' * 10**6)")
    programs = f"{sys.executable} program.py | head -1; echo ${{PIPESTATUS[0]}}"
    programs += f"; {sys.executable} {ROOT}/training/train.py --recipe=no_such; echo $?"
    options = {"cwd": tmp_path, "env": {**os.environ, DEBUG_VARIABLE: ""}, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-c", programs], **options)
    assert done.stdout.splitlines() == ["x", "1", "2"]
    assert done.stderr.startswith("train.py: error: --recipe 'no_such' not found") and done.stderr.count("\n") == 1


def test_a_path_without_a_folder_is_no_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "there").mkdir(parents=True)
    for name in ("./none", "../none", "/no/such", "a/b/c", "outputs/none"):
        with pytest.raises(ValueError, match=f"^--teacher: there is no folder '{name}'$"):
            check_model_source("--teacher", name)
    for name in ("gpt2", "someone/model", "outputs/there", "./outputs/there"):
        check_model_source("--teacher", name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", "is not valid JSON"),
        ("preprocessor_config.json", b"\xff{}", "is not UTF-8"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object, found list"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "is damaged or not whole"),
        ("model.safetensors", b"", "is damaged or not whole"),
    ],
)
def test_damaged_files_of_a_model_are_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^--teacher: {re.escape(str(tmp_path / name))} .*{words}"):
        check_model_source("--teacher", str(tmp_path))


def test_a_folder_without_a_processor_is_told(ended, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    status, line = ended(lambda: AutoImageProcessor.from_pretrained(tmp_path))
    assert status == 2 and f"'{tmp_path}' has no image processor: put the preprocessor_config.json" in line


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "config.json") == {"a": 1}


def test_texts_of_another_encoding_are_named(tmp_path):
    path = tmp_path / "card.yaml"
    path.write_bytes("limitations: für Bücher".encode("latin-1"))
    for read in (read_utf8, read_author_file, load_recipe):
        with pytest.raises(ValueError, match=r"card.yaml is not UTF-8 \(byte 14\)"):
            read(path)


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_weights_in_a_pickle_are_refused_in_one_line(ended, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"weight": Evil()}, path)
    status, line = ended(lambda: torch.load(path, weights_only=True))
    assert status == 2 and line.count("\n") == 1 and "save them as safetensors" in line and not Path("ran").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model_name_or_path=./none"], "--model_name_or_path: there is no folder './none'"),
        (["--model_name_or_path=translator", "--source_lang=de"], "--dataset_name or files, such as --test_file"),
    ],
)
def test_score_knows_a_translator_and_a_folder_that_is_not_there(ended, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "translator").mkdir()
    (tmp_path / "translator" / "config.json").write_text('{"model_type": "marian", "is_encoder_decoder": true}')
    status, line = ended(lambda: score.main(words))
    assert status == 2 and said in line and line.count("\n") == 1


@pytest.mark.parametrize("words", [["translate", "./none", "x"], ["pull", "a", "b"], ["--no-such"], ["convert"]])
def test_hf_vit_ends_with_one_line_and_status_2(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["hf-vit", *words])
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    error = capsys.readouterr().err
    assert error.startswith("hf-vit") and ": error: " in error and error.count("\n") == 1
