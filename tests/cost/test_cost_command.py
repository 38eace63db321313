"""Reports on a memory and on names, and the command."""

import json

import pytest
from PIL import Image

from hf_vit import HfTransformerConfig, HfViTConfig, cli
from hf_vit.cost import Setup, forecast, largest_batch, memory_bytes, model_config, vit_memory


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["hf-vit", "cost", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().out


def test_the_command_prints_json_of_a_variant(monkeypatch, capsys):
    words = ["vit_tiny_patch16_224", "--image_size", 640, "--batch_size", 32, "--memory", "24GiB", "--json"]
    code, out = run(monkeypatch, capsys, *words)
    told = json.loads(out)
    assert (code or 0, told["tokens"], told["fits"]) == (0, 1601, True)
    assert told["flops"] == sum(part["flops"] for part in told["parts"]) == 2 * told["macs"]


def test_the_command_prints_a_table_of_a_folder(monkeypatch, capsys, tmp_path):
    model_config("vit_tiny_patch16_224").save_pretrained(tmp_path)
    code, out = run(monkeypatch, capsys, tmp_path, "--memory", "1GiB", "--training", "--attn_implementation", "eager")
    assert not code
    assert all(word in out for word in ("patch embedding", "It fits into 1.00 GiB", "SDPA", "gradient checkpointing"))


@pytest.mark.parametrize("text", ["24", "GiB", "-1GiB", "0GiB", "24 gigabytes", ""])
def test_an_amount_of_memory_needs_a_number_and_a_unit(text):
    with pytest.raises(ValueError, match=r"memory must be a number above 0 and a unit of KiB, MiB, GiB"):
        memory_bytes(text)


def test_an_amount_of_memory_in_bytes():
    assert (memory_bytes("24GiB"), memory_bytes("1.5 GB")) == (24 * 2**30, 1_500_000_000)


def test_the_nearest_variant_is_named():
    with pytest.raises(
        ValueError, match="no folder or variant 'vit_smal_patch16_224', nearest: vit_small_patch16_224"
    ):
        model_config("vit_smal_patch16_224")


def test_sizes_that_do_not_fit_the_patch_are_refused():
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size"):
        model_config("vit_small_patch16_224", image_size=650)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(ValueError, match="model must be of model_type hf_vit, hf_transformer, hf_detr"):
        model_config(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing must be False without training"),
    ],
)
def test_setups_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Setup(**fields)


@pytest.mark.parametrize("training", [False, True])
def test_the_largest_batch_fits_and_one_image_more_does_not(training):
    config, limit = HfViTConfig.from_variant("vit_tiny_patch16_224"), 2**30
    most = largest_batch(config, Setup(training=training), limit)
    assert vit_memory(config, Setup(most, training)).peak <= limit < vit_memory(config, Setup(most + 1, training)).peak
    assert largest_batch(config, Setup(training=training), 1000) == 0


def test_remedies_say_what_the_changed_model_needs():
    config = HfViTConfig.from_variant("vit_tiny_patch16_640")
    setup = Setup(8, training=True, attn_implementation="eager")
    cost = forecast(config, setup, 2**33)
    remedies = {remedy.name: remedy for remedy in cost.remedies}
    fused = forecast(config, Setup(8, training=True), 2**33)
    assert remedies["SDPA"].peak == fused.memory.peak
    assert remedies["SDPA"].saved == cost.memory.peak - fused.memory.peak > 0
    assert remedies["SDPA"].largest_batch == fused.largest_batch > cost.largest_batch
    coarse = forecast(HfViTConfig.from_variant("vit_tiny_patch32_640"), setup)
    assert remedies["patch size 32x32"].peak == coarse.memory.peak


def test_the_command_draws_a_chart_and_tells_of_translators(monkeypatch, capsys, tmp_path):
    code, _ = run(monkeypatch, capsys, "vit_tiny_patch16_224", "--chart", tmp_path / "cost.png")
    assert not code
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.size == (1560, 480)
    folder = tmp_path / "translator"
    HfTransformerConfig(vocab_size=30).save_pretrained(folder)
    code, out = run(monkeypatch, capsys, folder, "--source_tokens", 10, "--target_tokens", 20, "--json")
    told = json.loads(out)
    assert (code or 0, told["cache_bytes"]) == (0, 2 * 6 * 30 * 512 * 4)
    code, _ = run(monkeypatch, capsys, folder, "--image_size", 64)
    assert code


def test_merging_tokens_is_among_the_remedies():
    config = HfViTConfig.from_variant("vit_tiny_patch16_224")
    remedies = {remedy.name: remedy for remedy in forecast(config, Setup(8)).remedies}
    merging = HfViTConfig.from_variant("vit_tiny_patch16_224", token_merging_r=8)
    assert remedies["token_merging_r 8"].peak == vit_memory(merging, Setup(8)).peak
