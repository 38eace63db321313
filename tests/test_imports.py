"""What is imported when: registration first, the rest when asked for, and what an extra brings only where it is used."""

import importlib.util
import json
import subprocess
import sys

import pytest
import transformers

import hf_vit

_HEAVY = ("datasets", "evaluate", "pandas", "pyarrow", "matplotlib", "jinja2", "sacrebleu", "babel", "codecarbon")


def run(code, *, blocked=()):
    """What a fresh process prints that executes `code` and cannot import the modules `blocked`."""
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    done = subprocess.run([sys.executable, "-c", hidden + code], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_configurations_register_what_their_auto_maps_name():
    config = hf_vit.HfViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    for model_type in ("hf_vit", "hf_transformer"):
        module = importlib.import_module(f"hf_vit.models.configuration_{model_type}")
        config_class = type(transformers.AutoConfig.for_model(model_type))
        assert f"{module.__name__.rpartition('.')[2]}.{config_class.__name__}" == module.AUTO_MAP["AutoConfig"]
        for auto_class, reference in module.AUTO_MAP.items():
            assert getattr(hf_vit, reference.partition(".")[2]).__name__ in hf_vit.__all__
            if auto_class != "AutoConfig":
                model_class = getattr(transformers, auto_class)._model_mapping[config_class]
                assert model_class is getattr(hf_vit, reference.partition(".")[2])
    assert isinstance(
        transformers.AutoModelForImageClassification.from_config(config), hf_vit.HfViTForImageClassification
    )


def test_public_names_are_those_that_a_type_checker_sees():
    """It cannot execute the loop that registers, and reads the same names as imports."""
    spec = importlib.util.find_spec("hf_vit")
    source = spec.loader.get_source("hf_vit")
    static = {line.split(" as ")[-1].strip(" ,") for line in source.splitlines() if " as Hf" in line}
    assert static == set(hf_vit.__all__)


def test_the_package_alone_needs_no_extra():
    extras = ("accelerate", "datasets", "evaluate", "jinja2", "matplotlib", "scipy", "sklearn", "torchvision", "typer")
    status, out, err = run("import hf_vit; print(hf_vit.explain.__name__, hf_vit.HfViTModel.__name__)", blocked=extras)
    assert (status, out) == (0, "hf_vit.explain HfViTModel\n"), err


@pytest.mark.parametrize(
    ("missing", "code", "extra"),
    [
        ("jinja2", "from hf_vit.cards import write_card", "hub"),
        ("matplotlib", "import hf_vit; hf_vit.cards.check_card", "hub"),
        ("accelerate", "import hf_vit; hf_vit.trainer", "train"),
        ("datasets", "from hf_vit.train import main; main(['--dry_run'])", "train"),
    ],
)
def test_a_part_that_needs_an_extra_says_which(missing, code, extra):
    status, _, err = run(code, blocked=[missing])
    assert status == 1
    assert err.splitlines()[-1].endswith(
        f'MissingExtraError: {missing} is not installed: pip install "hf_vit[{extra}]"'
    )


def test_what_is_no_part_of_the_package_is_no_attribute_of_it():
    with pytest.raises(AttributeError, match="has no attribute 'trainr'"):
        hf_vit.trainr  # noqa: B018


@pytest.mark.parametrize(
    "command",
    [
        ["hf_vit.train", "--help"],
        ["hf_vit.train", "--recipe", "dates", "--help"],
        ["hf_vit.train", "--learning_rte", "1"],
        ["hf_vit.cli", "--help"],
        ["hf_vit.cli", "push", "--help"],
        ["hf_vit.cli", "train", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_refusals_load_what_registration_needs_and_nothing_heavy_beside(command):
    code = (
        "import json, runpy, sys; import hf_vit; registered = set(sys.modules)\n"
        f"sys.argv = {command[:1] + command[1:]}\n"
        f"try: runpy.run_module({command[0]!r}, run_name='__main__')\n"
        "except SystemExit as stop: status = stop.code or 0\n"
        "print('\\n' + json.dumps([status, sorted({name.partition('.')[0] for name in set(sys.modules) - registered})]))"
    )
    status, out, err = run(code)
    assert status == 0, err
    status, loaded = json.loads(out.splitlines()[-1])
    assert status == (2 if "--learning_rte" in command else 0)
    assert not set(loaded) & set(_HEAVY)
