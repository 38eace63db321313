"""Flags and recipes: who wins, what is refused and what the refusal says."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from hf_vit import tasks, train
from hf_vit.recipes import load_recipe

RECIPES = tasks.recipes()


def parse(*argv):
    return train.parse(list(argv))


def refuse(capsys, *argv):
    with pytest.raises(SystemExit) as refusal:
        parse(*argv)
    assert refusal.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_flags_win_over_the_recipe_and_the_recipe_over_the_defaults(recipe):
    path = recipe("dataset_name: x\nlearning_rate: 3e-4\nseed: 7\nuse_ema_weights: false\nimage_size: [32, 64]\n")
    arguments = parse("--recipe", path, "--seed", "8", "--weight-decay=0.3")
    assert arguments.optimization.learning_rate == 3e-4  # which YAML alone reads as a string
    assert (arguments.run.seed, arguments.optimization.weight_decay) == (8, 0.3)
    assert arguments.model.size == (32, 64)
    assert not arguments.ema.use_ema_weights
    assert arguments.optimization.num_train_epochs == 10
    assert arguments.run.output_dir == "outputs/mine"
    named = {"recipe", "dataset_name", "learning_rate", "seed", "use_ema_weights", "image_size", "weight_decay"}
    assert set(arguments.explicit) == named


def test_none_undoes_what_the_recipe_sets(recipe):
    path = recipe("dataset_name: x\nema_decay: 0.9\nauto_augment: randaugment\nimage_size: [8]\nteacher: [a, b]\n")
    flags = [f"--{name}=none" for name in ("ema_decay", "auto_augment", "image_size", "teacher")]
    arguments = parse("--recipe", path, *flags)
    values = arguments.to_dict()
    assert [values[name] for name in ("ema_decay", "auto_augment", "image_size", "teacher")] == [None] * 4
    assert parse("--recipe", path).to_dict()["teacher"] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        ("dataset_name: x", ["--train_dir=photos"], {"dataset_name": None, "train_dir": "photos"}),
        ("train_dir: x\nvalidation_dir: y", ["--dataset_name=z"], {"train_dir": None, "validation_dir": None}),
        ("train_dir: x", ["--train_dir=y"], {"train_dir": "y", "dataset_name": None}),
        ("dataset_name: x", ["--train_dir=none"], {"dataset_name": "x"}),
        ("dataset_name: x\nema_decay: 0.9", ["--num_averaged_epochs=2"], {"ema_decay": None}),
        ("dataset_name: x\nmax_train_steps: 5", ["--num_train_epochs=2"], {"max_train_steps": None}),
        ("dataset_name: x\nwarmup_steps: 5", ["--warmup_ratio=0.1"], {"warmup_steps": 0}),
        (
            "dataset_name: x\nconfig_name: deit_tiny_patch16_224\nconfig_overrides: {drop_path_rate: 0.1}",
            ["--model_name_or_path=y", "--config_overrides=hidden_dropout_prob=0.2"],
            {"config_name": None, "model_name_or_path": "y", "config_overrides": {"hidden_dropout_prob": 0.2}},
        ),
        (
            "dataset_name: x\nconfig_overrides: {hidden_size: 32}",
            ["--model_type=resnet"],
            {"model_type": "resnet", "config_overrides": {}},
        ),
    ],
)
def test_of_two_ways_to_say_a_thing_the_typed_one_counts(recipe, text, flags, expected):
    arguments = parse("--recipe", recipe(text), *flags)
    assert {name: arguments.to_dict()[name] for name in expected} == expected
    undone = {name for name, value in expected.items() if not value}
    assert not undone & set(arguments.explicit)


@pytest.mark.parametrize("flag", ["hidden_size=64,pooling=mean", '{"hidden_size": 64, "pooling": "mean"}'])
def test_config_overrides_are_merged_over_the_recipes(recipe, flag):
    path = recipe("dataset_name: x\nconfig_overrides: {hidden_size: 32, patch_size: 2}\n")
    overrides = parse("--recipe", path, "--config_overrides", flag).model.config_overrides
    assert overrides == {"hidden_size": 64, "patch_size": 2, "pooling": "mean"}
    assert json.loads(json.dumps(overrides)) == overrides


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learning_rte", "1"], ["'learning_rte'", "'learning_rate'"]),
        (["--learning_rate=fast"], ["learning_rate", "fast"]),
        (["--learning_rate", "-1"], ["--learning_rate", "> 0", "-1"]),
        (["--seed", "-1"], ["--seed", ">= 0"]),
        (["--per_device_train_batch_size", "0"], ["--per_device_train_batch_size", ">= 1", "0"]),
        (["--checkpointing_steps", "often"], ["--checkpointing_steps", "'often'"]),
        (["--hub_model_id", "a/b/c"], ["--hub_model_id", "'a/b/c'"]),
        (["--config_overrides", "hidden_size"], ["config_overrides"]),
        (["--task", "image_clasification"], ["image_classification"]),
        (["--recipe", "digit"], ["'digits'"]),
        (["--train_dir", "photos", "--dataset_name", "x"], ["--dataset_name", "--train_dir"]),
        (["--image_std", "0"], ["--image_std", "> 0"]),
        (["surplus"], ["'surplus'"]),
    ],
)
def test_bad_flags_are_refused_by_name(capsys, argv, words):
    message = refuse(capsys, *argv)
    assert len(message.splitlines()) == 1
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rates: 1", ["'learning_rates'", "'learning_rate'"]),
        ("learning_rate: fast", ["learning_rate", "fast"]),
        ("lr_scheduler_type: cosinus", ["cosinus", "cosine"]),
        ("- a\n- b", ["name: value", "list"]),
    ],
)
def test_bad_recipes_are_refused_by_name(capsys, recipe, text, words):
    message = refuse(capsys, "--recipe", recipe(text))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: '3e-4'", "learning_rate", 3e-4),
        ("checkpointing_steps: 100", "checkpointing_steps", "100"),
        ("image_size: 32", "image_size", [32]),
        ("image_std: [1, 0.5, 2]", "image_std", [1.0, 0.5, 2.0]),
        ("class_names: [1, -x, --y]", "class_names", ["1", "-x", "--y"]),
        ("card_description: --not a flag", "card_description", "--not a flag"),
        ("use_ema_weights: no", "use_ema_weights", False),
        ("max_grad_norm: null", "max_grad_norm", None),
        ("ema_decay: none", "ema_decay", None),
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("lr_scheduler_kwargs: {min_lr: 1e-5}", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ("lr_scheduler_kwargs: min_lr=1e-5", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
    ],
)
def test_a_recipes_values_are_of_their_arguments_types(recipe, text, name, expected):
    value = parse("--recipe", recipe(f"dataset_name: x\n{text}\n")).to_dict()[name]
    assert value == expected and isinstance(value, type(expected))
    if isinstance(value, list):
        assert [type(each) for each in value] == [type(each) for each in expected]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: 2.5", ["seed must be a whole number, found 2.5"]),
        ("seed: true", ["seed must be a whole number, found True"]),
        ("seed: null", ["seed must be a whole number, found None"]),
        ("learning_rate: [1, 2]", ["learning_rate must be a number, found [1, 2]"]),
        ("learning_rate: {a: 1}", ["learning_rate must be a number, found {'a': 1}"]),
        ("use_ema_weights: 1", ["use_ema_weights must be true or false, found 1"]),
        ("config_overrides: 3", ["config_overrides must be a mapping, found 3"]),
        ("image_size: [big]", ["image_size must be a whole number, found 'big'"]),
        ("mixed_precision: no", ["mixed_precision must be a text, found False", "quote it"]),
        ("mixed_precision: fp8", ["mixed_precision must be one of no, bf16, fp16", "found 'fp8'"]),
        ("hub_strategy: never", ["hub_strategy must be one of end, every_save, checkpoint", "found 'never'"]),
        ("seed: 1\nseed: 2", ["not valid YAML", "'seed' comes twice"]),
        ("config_overrides: {a: 1, a: 2}", ["not valid YAML", "'a' comes twice"]),
        ("seed: [1", ["not valid YAML"]),
        ("recipe: digits", ["a recipe cannot name another recipe"]),
    ],
)
def test_a_recipes_values_of_other_types_are_refused(capsys, recipe, line, words):
    message = refuse(capsys, "--recipe", recipe(f"dataset_name: x\n{line}\n"))
    assert len(message.splitlines()) == 1
    assert all(word in message for word in ["mine", *words]), message


def test_a_key_value_flag_takes_small_numbers_as_they_are_written():
    arguments = parse("--lr_scheduler_kwargs", "min_lr=1e-5,num_cycles=2")
    assert arguments.optimization.lr_scheduler_kwargs == {"min_lr": 1e-5, "num_cycles": 2}


def test_the_arguments_of_a_task_are_fields_that_a_type_checker_knows():
    groups = train.arguments_of("translation").group_types()
    assert list(groups)[:5] == ["run", "data", "tokenizer", "model", "generation"]
    arguments = parse("--recipe", "dates")
    for name, kind in groups.items():
        assert type(getattr(arguments, name)) is kind
    names = [field.name for kind in groups.values() for field in dataclasses.fields(kind)]
    assert list(arguments.to_dict()) == names and len(set(names)) == len(names)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_open_with_what_they_take_and_give_and_their_command_parses(name):
    text = RECIPES[name].read_text()
    header = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in header.splitlines())
    facts = dict(re.findall(r"^# (command|hardware|time|score): +(\S.*)$", header, re.MULTILINE))
    assert {"command", "hardware", "score"} <= set(facts)
    assert "time" in facts or facts["score"].startswith("none")
    launch, _, flags = facts["command"].partition("training/train.py")
    configuration = re.fullmatch(r"accelerate launch (?:--config_file (\S+) )?", launch)[1]
    assert configuration is None or (Path(__file__).parents[1] / configuration).is_file()
    assert parse(*flags.split()).run.recipe == name
    assert load_recipe(RECIPES[name])


def test_help_is_grouped_and_states_the_defaults_of_the_recipe(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"\n{group}:\n" in text for group in ("Run", "Data", "Model", "Optimization", "Stopping"))
    epochs = load_recipe(RECIPES["digits"])["num_train_epochs"]
    line = next(line for line in text.splitlines() if line.strip().startswith("--num_train_epochs"))
    assert line.endswith(f"(default: {epochs})")
    assert max(map(len, text.splitlines())) <= 118
