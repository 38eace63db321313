"""Folders that version 0.1.0 saved compute what they did, whatever transformers runs; where their own code does not,
it is said and mended."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hub_server.saved_run import save_run
from saved_folders_program import EXPECTED, outputs_of
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from hf_vit import HfViTForImageClassification
from hf_vit.cards import write_card
from hf_vit.cli import app
from hf_vit.hub import publish as hub
from hf_vit.hub.doctor import examine
from hf_vit.hub.own_code import MODELS, is_older, refresh_code
from hf_vit.hub.staging import staged
from hf_vit.isolated.fresh_process import fresh_process
from hf_vit.models import tested_versions
from hf_vit.models.tested_versions import TESTED_TRANSFORMERS, fault_of_code

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_by_0_1_0"
MINOR = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# Hides the package and prints what the folders compute by their own code.
PROGRAM = """
import json, sys
sys.modules["hf_vit"] = None
sys.path.insert(0, sys.argv[1])
from saved_folders_program import outputs_of
print(json.dumps(outputs_of(sys.argv[2], trust_remote_code=True)))
"""


def by_their_own_code(folder, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[1]), str(folder)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout.splitlines()[-1])


def assert_same(got, classifier_alone=False):
    torch.testing.assert_close(
        torch.tensor(got["logits"]), torch.tensor(EXPECTED["images"]["logits"]), atol=1e-4, rtol=1e-4
    )
    ends = torch.tensor(got["logits_of_ends"]), torch.tensor(EXPECTED["logits_of_ends"])
    torch.testing.assert_close(*ends, atol=1e-3, rtol=1e-3)
    if not classifier_alone:
        assert got["greedy"] == EXPECTED["greedy"]
        assert got["beams"] == EXPECTED["beams"]


def test_they_compute_the_same_through_the_package():
    got = outputs_of(SAVED)
    assert_same(got)
    assert got["module"].startswith("hf_vit.models.")


def test_their_own_code_is_right_up_to_5_23_and_their_translators_is_wrong_after(tmp_path):
    got = by_their_own_code(SAVED, tmp_path)
    assert got["module"].startswith("transformers_modules.")
    assert_same(got, classifier_alone=MINOR >= (5, 24))
    assert (got["greedy"] == EXPECTED["greedy"]) is (MINOR < (5, 24))


def test_refreshed_folders_are_right_by_their_own_code(tmp_path):
    folder = shutil.copytree(SAVED, tmp_path / "saved")
    assert fault_of_code(folder / "translator") and not fault_of_code(folder / "classifier")
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    outcome = CliRunner().invoke(app, ["doctor", str(folder / "translator"), "--refresh-code", "--no-load"])
    assert outcome.stdout.startswith("replaced: ") and "encoder_decoder.py" in outcome.stdout, outcome.output
    assert refresh_code(folder / "classifier")
    for name in ("classifier", "translator"):
        assert not is_older(folder / name) and not fault_of_code(folder / name)
        assert refresh_code(folder / name) == []
        for path in (folder / name).glob("*.py"):
            assert path.read_text() == (MODELS / path.name).read_text()
    assert_same(by_their_own_code(folder, tmp_path))
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == before


def test_files_that_are_no_model_code_stay_and_code_that_is_no_longer_needed_goes(tmp_path):
    folder = shutil.copytree(SAVED / "translator", tmp_path / "translator")
    (folder / "inference.py").write_text("print('mine')\n")
    (folder / "old_idea.py").write_text("OLD = 1\n")
    with (folder / "layers.py").open("a") as file:
        file.write("\nfrom .old_idea import OLD  # noqa\n")
    refresh_code(folder)
    assert (folder / "inference.py").exists() and not (folder / "old_idea.py").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == json.loads((SAVED / "translator" / "config.json").read_text())["auto_map"]


def test_a_folder_of_another_model_is_not_refreshed(tmp_path):
    with pytest.raises(ValueError, match="holds no model of this package"):
        refresh_code(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="holds no model of this package"):
        refresh_code(tmp_path)
    assert not is_older(tmp_path)


def test_doctor_says_that_a_translators_own_code_is_at_fault():
    outcome = CliRunner().invoke(app, ["doctor", str(SAVED / "translator"), "--no-load"])
    (line,) = [line for line in outcome.stdout.splitlines() if "5.24" in line]
    assert outcome.exit_code == 1 and "wrong texts" in line and "--refresh-code" in line
    assert not [line for line in examine(SAVED / "classifier") if "5.24" in line]


def test_loading_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(vars(tested_versions.logger), "said", set())
    for _ in range(2):
        AutoModelForSeq2SeqLM.from_pretrained(SAVED / "translator")
        AutoModelForImageClassification.from_pretrained(SAVED / "classifier")
    lines = [record.getMessage() for record in caplog.records if record.name == "hf_vit"]
    assert not any("\n" in line for line in lines)
    (faulty,) = [line for line in lines if str(SAVED / "translator") in line]
    (other,) = [line for line in lines if str(SAVED / "classifier") in line]
    assert "5.24" in faulty and "has model code other than that of the installed hf_vit" in other


def test_what_is_pushed_has_this_packages_code_and_the_folder_keeps_its_own(tmp_path):
    folder = shutil.copytree(SAVED / "translator", tmp_path / "translator")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with staged(folder, refresh=True) as stage:
        assert not [problem for problem in examine(stage, folder) if "5.24" in problem]
        assert (stage / "encoder_decoder.py").read_text() == (MODELS / "encoder_decoder.py").read_text()
        with fresh_process() as process:
            process.load(folder)
            assert process.load(stage).difference < 1e-5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with staged(folder) as stage:
        assert [problem for problem in examine(stage, folder) if "5.24" in problem]


def test_code_that_was_changed_by_hand_is_not_replaced_unseen(tmp_path):
    folder = shutil.copytree(SAVED / "translator", tmp_path / "translator")
    with (folder / "layers.py").open("a") as file:
        file.write("\n_activate = MLP.activate\nMLP.activate = lambda self, states: 2 * _activate(self, states)\n")
    refused = pytest.raises(ValueError, match="its own code is of an older version and was changed")
    with staged(folder, refresh=True) as stage, fresh_process() as process, refused:
        hub._compare_codes(process, folder, stage)


def test_a_card_is_written_anew_with_the_code(tmp_path):
    folder = save_run(tmp_path / "digits", "alice/digits")
    write_card(folder)
    (folder / "tested_versions.py").write_text('TESTED_TRANSFORMERS = ("5.17", "5.18")\n')
    assert is_older(folder)
    with staged(folder) as stage:
        assert [problem for problem in examine(stage, folder) if "not those that the card's snippets" in problem]
    with staged(folder, refresh=True) as stage:
        assert examine(stage, folder) == []
        assert "tested with transformers {} to {}".format(*TESTED_TRANSFORMERS) in (stage / "README.md").read_text()
    assert is_older(folder)


def test_code_of_this_version_is_left_as_it_is(tmp_path, tiny_model):
    model = tiny_model(HfViTForImageClassification)
    model.save_pretrained(tmp_path)
    with (tmp_path / "layers.py").open("a") as file:
        file.write("\n# changed by hand\n")
    with staged(tmp_path, refresh=True) as stage:
        assert "changed by hand" in (stage / "layers.py").read_text()


def test_stop_strings_stop_the_fast_search():
    translator = AutoModelForSeq2SeqLM.from_pretrained(SAVED / "translator")
    tokenizer = AutoTokenizer.from_pretrained(SAVED / "translator")
    inputs = tokenizer("hello world", return_tensors="pt")
    options = {"max_new_tokens": 20, "stop_strings": ["LO"], "tokenizer": tokenizer}
    got = translator.generate(**inputs, **options)
    assert tokenizer.decode(got[0], skip_special_tokens=True) == "HELLO"
    plain = translator.generate(**inputs, **options, return_dict_in_generate=True).sequences
    assert torch.equal(got, plain)
