"""Imports and their time: the models first, the rest when asked for, and what an extra brings where it is used."""

import importlib
import inspect
import json
import os
import subprocess
import sys

import pytest
import transformers

import hf_vit

# What torch and transformers import of what they find installed is theirs.
HEAVY = {"datasets", "evaluate", "pandas", "pyarrow", "sklearn", "matplotlib", "jinja2", "peft", "sacrebleu", "babel"}
EXTRAS = ("accelerate", "datasets", "evaluate", "jinja2", "matplotlib", "scipy", "sklearn", "torchvision", "typer")
COMMANDS = [
    "hf_vit.train --help",
    "hf_vit.train --recipe dates --help",
    "hf_vit.train --learning_rte 1",
    "hf_vit.cli --help",
    "hf_vit.cli push --help",
    "hf_vit.cli train --help",
]
MISSING = {
    "jinja2": ("from hf_vit.cards import write_card", "hub"),
    "matplotlib": ("hf_vit.cards.check_card", "hub"),
    "accelerate": ("hf_vit.trainer", "train"),
    "datasets": ("import hf_vit.train; hf_vit.train.main(['--dry_run'])", "train"),
}


def _outcome(code, blocked):
    """The outcome in a copy of this process that has imported the package alone: the error, the modules loaded."""
    registered = set(sys.modules)
    sys.modules.update(dict.fromkeys(blocked))
    error = None
    try:
        exec(code, {"hf_vit": hf_vit})
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
    return error, sorted({name.partition(".")[0] for name in set(sys.modules) - registered})


def _main():
    outcomes = {}
    for name, (code, blocked) in json.load(sys.stdin).items():
        reader, writer = os.pipe()
        if os.fork() == 0:
            sys.stdout = sys.stderr
            os.write(writer, json.dumps(_outcome(code, blocked)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            outcomes[name] = json.load(pipe)
        os.wait()
    print(json.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes():
    cases = {name: (code, [name]) for name, (code, _) in MISSING.items()}
    for command in COMMANDS:
        module, *_ = words = command.split()
        cases[command] = (
            f"import runpy, sys; sys.argv = {words}; runpy.run_module('{module}', run_name='__main__')",
            [],
        )
    parts = ["import json, os, sys", "import hf_vit", inspect.getsource(_outcome), inspect.getsource(_main), "_main()"]
    command = [sys.executable, "-c", "\n".join(parts)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_refusals_load_nothing_heavy_that_registration_does_not(outcomes, command):
    error, loaded = outcomes[command]
    assert error == ("SystemExit: 2" if "--learning_rte" in command else "SystemExit: 0")
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("missing", MISSING)
def test_a_part_that_needs_an_extra_says_which(outcomes, missing):
    extra = MISSING[missing][1]
    error = f'MissingExtraError: {missing} is not installed: pip install "hf_vit[{extra}]"'
    assert outcomes[missing][0] == error


def test_the_package_alone_needs_no_extra():
    code = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); import hf_vit; hf_vit.explain, hf_vit.HfViTModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_configurations_register_what_their_auto_maps_name():
    for model_type in ("hf_vit", "hf_transformer", "hf_detr", "hf_vit_image_to_text"):
        auto_map = dict(importlib.import_module(f"hf_vit.models.configuration_{model_type}").AUTO_MAP)
        config_class = type(transformers.AutoConfig.for_model(model_type))
        assert auto_map.pop("AutoConfig").endswith(f".{config_class.__name__}")
        for auto_class, reference in auto_map.items():
            model_class = getattr(hf_vit, reference.partition(".")[2])
            assert getattr(transformers, auto_class)._model_mapping[config_class] is model_class


def test_public_names_are_those_that_a_type_checker_sees():
    """It cannot execute the loop that registers, and reads the same names as imports."""
    lines = inspect.getsource(hf_vit).splitlines()
    static = {line.rpartition(" as ")[2].strip(" ,") for line in lines if " import Hf" in line or " as Hf" in line}
    assert static == set(hf_vit.__all__) == {name for name in vars(hf_vit) if name.startswith("Hf")}


def test_what_is_no_part_of_the_package_is_no_attribute_of_it():
    with pytest.raises(AttributeError, match="has no attribute 'trainr'"):
        hf_vit.trainr  # noqa: B018
