"""Each folder runs its own model code, and the installed package says where it takes over a folder of other code."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformer_tools import make_model, tokens
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.dynamic_module_utils import get_relative_import_files

import hf_vit
from hf_vit import HfTransformerForConditionalGeneration, HfViTForImageClassification
from hf_vit.hub.staging import staged
from hf_vit.models.code_version import code_digest

MODELS = Path(hf_vit.__file__).parent / "models"
# No configuration has ever imported these files; the factor is what tells one version from the other.
EDITED_FILE = "layers.py"
EDIT = """
_forward = MLP.forward
MLP.forward = lambda self, states, residual=0: {factor} * _forward(self, states) + residual
"""
# Loading forgets the positions: what is done to a checkpoint transformers keeps by the name of the model alone.
LOADING_FILE = "checkpoint_conversion.py"
LOADING_EDIT = "\n_resample = resample_table\nresample_table = lambda table, size: 0 * _resample(table, size)\n"
FACTORS = {"v1": 1, "v2": 2, "edited": 4}


def edit(folder, factor):
    if factor != 1:
        with (folder / EDITED_FILE).open("a") as file:
            file.write(EDIT.format(factor=factor))
        if (folder / LOADING_FILE).is_file():
            with (folder / LOADING_FILE).open("a") as file:
                file.write(LOADING_EDIT)


def with_factor(model, factor):
    """The model whose weights do what another's code does."""
    for name, parameter in model.named_parameters():
        if ".mlp.fc2." in name:
            parameter.data *= factor
        if name.endswith("position_embedding.grid") and factor != 1:
            parameter.data.zero_()
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folders, the models in them with the inputs, and what a process without the package made of them."""
    root = tmp_path_factory.mktemp("code")
    torch.manual_seed(0)
    config = hf_vit.HfViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    models = {"digits": HfViTForImageClassification(config).eval(), "dates": make_model()}
    inputs = {
        "digits": {"pixel_values": torch.randn(2, 3, 8, 8)},
        "dates": {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)},
    }
    for name, model in models.items():
        torch.save(inputs[name], root / f"{name}.pt")
        for version, factor in FACTORS.items():
            model.save_pretrained(root / version / name)
            edit(root / version / name, factor)
            if version == "v2":  # as its own code would have saved it; by hand nobody edits the digest
                config_file = root / version / name / "config.json"
                config = json.loads(config_file.read_text())
                config["code_digest"] = code_digest(root / version / name / f"configuration_{config['model_type']}.py")
                config_file.write_text(json.dumps(config))
    shutil.copytree(root / "v1", root / "v1-before")
    environment = {**os.environ, "HF_HOME": str(root / "caches"), "HF_MODULES_CACHE": str(root / "modules")}
    program = Path(__file__).with_name("code_versions_program.py")
    command = [sys.executable, str(program), str(root)]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return root, models, inputs, torch.load(root / "results.pt")


@pytest.mark.parametrize("name", ["digits", "dates"])
def test_folders_of_one_name_run_their_own_code_in_one_process(run, name):
    _, models, inputs, results = run
    wanted = {"v1": 1, "v2": 2, "v1 again": 1, "v2 saved again": 2, "v1 edited": 4}
    assert {note for each, note in results if each == name} == set(wanted)
    for note, factor in wanted.items():
        model = copy.deepcopy(models[name])
        with torch.no_grad():
            expected = with_factor(model, factor)(**inputs[name]).logits
        torch.testing.assert_close(results[name, note], expected, msg=f"{name}, {note}")


@pytest.mark.parametrize("name", ["digits", "dates"])
@pytest.mark.parametrize("version", FACTORS)
def test_a_folder_is_saved_again_with_its_own_code(run, version, name):
    root, *_ = run
    source = root / ("v1-before" if version == "v1" else version) / name
    again = root / f"{version}-again" / name
    files = {path.name: path.read_text() for path in source.glob("*.py")}
    assert EDITED_FILE in files and files == {path.name: path.read_text() for path in again.glob("*.py")}
    config = json.loads((again / "config.json").read_text())
    assert config["code_digest"] == code_digest(again / f"configuration_{config['model_type']}.py")


@pytest.mark.parametrize("family", ["hf_vit", "hf_transformer"])
def test_a_configuration_names_all_code_of_its_models(family):
    """So that transformers, which hashes the files that a configuration imports, tells versions apart."""
    named, needed = (
        {Path(name).name for name in get_relative_import_files(MODELS / f"{kind}_{family}.py")}
        for kind in ("configuration", "modeling")
    )
    assert named == needed


@pytest.fixture
def warnings_of(caplog):
    """`warnings_of(call)`: what is said while it runs."""

    def collect(call):
        caplog.clear()
        vars(logging.getLogger("hf_vit")).pop("said", None)  # by other tests
        call()
        return caplog.messages

    return collect


LOADS = {
    "class": lambda folder: HfViTForImageClassification.from_pretrained(folder),
    "auto": lambda folder: AutoModelForImageClassification.from_pretrained(folder),
    "auto, own code asked for": lambda folder: AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True
    ),
    "configuration": lambda folder: AutoConfig.from_pretrained(folder),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_the_package_says_in_one_line_that_it_takes_over_other_code(tmp_path, tiny_model, warnings_of, load):
    tiny_model().save_pretrained(tmp_path)
    assert warnings_of(lambda: load(tmp_path)) == []
    edit(tmp_path, 2)
    (said,) = warnings_of(lambda: load(tmp_path))
    assert str(tmp_path) in said and "installed hf_vit" in said and "\n" not in said


def test_the_package_goes_by_the_digest_where_the_code_is_not_at_hand(tmp_path, tiny_model, warnings_of):
    tiny_model().save_pretrained(tmp_path)
    for path in tmp_path.glob("*.py"):
        path.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    for digest, count in ((config["code_digest"], 0), ("0" * 64, 1), (None, 1)):
        (tmp_path / "config.json").write_text(json.dumps({**config, "code_digest": digest}))
        assert len(warnings_of(lambda: LOADS["auto"](tmp_path))) == count


def test_what_is_pushed_of_an_edited_folder_tells_its_own_code(tmp_path, tiny_model):
    tiny_model().save_pretrained(tmp_path / "digits")
    before = (tmp_path / "digits" / "config.json").read_bytes()
    with staged(tmp_path / "digits") as stage:
        assert (stage / "config.json").read_bytes() == before
    edit(tmp_path / "digits", 2)
    with staged(tmp_path / "digits") as stage:
        digest = json.loads((stage / "config.json").read_text())["code_digest"]
        assert digest == code_digest(stage / "configuration_hf_vit.py") != json.loads(before)["code_digest"]
    assert (tmp_path / "digits" / "config.json").read_bytes() == before


def test_a_folder_saved_before_there_were_digests_loads(tmp_path, warnings_of):
    model = make_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["code_digest"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code_version.py").unlink()
    (said,) = warnings_of(lambda: HfTransformerForConditionalGeneration.from_pretrained(tmp_path))
    assert "other than" in said
    again = HfTransformerForConditionalGeneration.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)  # the package's code with the package's digest
    assert warnings_of(lambda: HfTransformerForConditionalGeneration.from_pretrained(tmp_path)) == []
    for name, parameter in again.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name])
