"""Exported models compute what the originals do, where this package is not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from random_weights import randomise
from timm.models import save_for_hf
from translators import make_tokenizer
from typer.testing import CliRunner

from hf_vit import (
    HfTransformerConfig,
    HfTransformerForConditionalGeneration,
    HfViTConfig,
    HfViTImageProcessor,
    HfViTModel,
)
from hf_vit.cli import app
from hf_vit.conversion.convert import convert
from hf_vit.export import formats
from hf_vit.export.export import export

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
LABELS = ["cat", "dog", "owl"]
DATES = Path(__file__).parents[2] / "model_cards" / "dates"
TEXT = {"vocab_size": 16, "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 8}
TEXT |= {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 12}


def run(folder, argument):
    """The output of the folder's own program, in a process that cannot import this package."""
    program = (
        "import runpy, sys; sys.modules['hf_vit'] = None; sys.argv = ['run.py', sys.argv[1]]; "
        f"runpy.run_path({str(folder / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = torch.randint(256, (30, 41, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier that came from timm, its folder."""
    folder = tmp_path_factory.mktemp("classifier")
    peer = randomise(timm.create_model("vit_tiny_patch16_224", **SIZES))
    peer.pretrained_cfg = {**peer.pretrained_cfg, "input_size": (3, 32, 32), "crop_pct": 0.9}
    save_for_hf(peer, folder / "peer", model_args=SIZES, model_config={"label_names": LABELS})
    return peer, convert(folder / "peer", folder / "ours")


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")

    def make(name="sinusoidal", **fields):
        target = folder / name
        if not target.exists():
            config = HfTransformerConfig(**{**TEXT, "position_embedding": name, **fields})
            model = randomise(HfTransformerForConditionalGeneration(config))
            model.generation_config.max_length = 12
            model.save_pretrained(target)
            make_tokenizer().save_pretrained(target)
        return target

    return make


def test_onnx_of_a_converted_classifier_gives_timms_answer(classifier, photo, tmp_path):
    peer, folder = classifier
    onnxruntime = pytest.importorskip("onnxruntime")
    result = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "onnx"), "--format", "onnx"])
    assert result.exit_code == 0, result.output
    assert "model: differs by" in result.output and "own size alone" not in result.output
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(peer))
    with torch.no_grad():
        expected = peer(transform(Image.open(photo))[None])
    assert run(tmp_path / "onnx", str(photo)) == LABELS[expected.argmax()]
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pixel_values": transform(Image.open(photo))[None].numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-4, rtol=1e-4)
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        *("model.onnx", "labels.json", "run.py", "preprocessor_config.json", "image_processing_hf_vit.py")
    }


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_onnx_of_a_large_model_has_its_weights_beside_it(classifier, photo, tmp_path, monkeypatch, dtype):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(formats, "ONNX_LIMIT", 50_000)  # bytes; the model has some 80,000
    report = export(str(classifier[1]), tmp_path / "large", "onnx", dtype)
    assert report.differences["model"] < (1e-4 if dtype == "float32" else 0.5)
    assert (tmp_path / "large" / "model.onnx.data").exists() == (dtype == "float32")
    assert run(tmp_path / "large", str(photo)) in LABELS
    monkeypatch.setattr(formats, "ONNX_LIMIT", 10_000)
    with pytest.raises(ValueError, match=r"dtype must be float32 or float16 for a model of 19,619 weights in onnx"):
        export(str(classifier[1]), tmp_path / "small", "onnx", "int8")
    assert not (tmp_path / "small").exists()


def test_int8_and_the_accuracy_that_it_loses(classifier, tmp_path):
    pytest.importorskip("onnxruntime")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 32, 32, 3), generator=generator, dtype=torch.uint8).numpy()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    images = [Image.fromarray(each) for each in pixels]
    data = Dataset.from_dict({"image": images, "label": [i % 3 for i in range(20)]}, features=features)
    DatasetDict(train=data, test=data).save_to_disk(tmp_path / "data")
    options = {"dataset_name": str(tmp_path / "data"), "split": "test"}
    report = export(str(classifier[1]), tmp_path / "int8", "onnx", "int8", data=options)
    assert 0 < report.differences["model"] < 0.5
    (score,) = report.scores
    assert score.num_examples == 20 and abs(score.original - score.exported) < 0.3
    assert "accuracy on 20 examples" in str(report)


@pytest.mark.parametrize("kind", ["onnx", "ctranslate2"])
def test_what_int8_costs_a_translator(tmp_path, kind):
    """Of the dates' translator, which was trained: the first digits are not lost."""
    pytest.importorskip("onnxruntime" if kind == "onnx" else "ctranslate2")
    arguments = ["export", str(DATES), str(tmp_path / kind), "--format", kind, "--dtype", "int8"]
    options = ["--dataset-name", "dates", "--source-lang", "text", "--target-lang", "iso8601"]
    result = CliRunner().invoke(app, [*arguments, *options, "--max-eval-samples", "40"])
    assert result.exit_code == 0, result.output
    found = re.findall(r"(bleu|exact_match) on 40 examples: ([\d.]+), exported ([\d.]+)", result.output)
    scores = {name: (float(original), float(exported)) for name, original, exported in found}
    assert scores["exact_match"][0] > 0.95 and scores["exact_match"][1] > 0.9
    assert scores["bleu"][0] > 95 and scores["bleu"][1] > 90


def test_torch_export_in_bf16(classifier, tmp_path):
    report = export(str(classifier[1]), tmp_path / "program", "torch_export", "bfloat16")
    assert 0 < report.differences["model"] < 0.1 and report.is_dynamic_in_size


@pytest.mark.slow
def test_compiled_ahead_of_time(classifier, photo, tmp_path):
    report = export(str(classifier[1]), tmp_path / "compiled", "aoti")
    assert report.differences["model"] < 1e-4
    assert run(tmp_path / "compiled", str(photo)) in LABELS


def test_a_body_gives_its_features(photo, tmp_path):
    model = randomise(HfViTModel(HfViTConfig.from_variant("vit_tiny_patch16_32", num_hidden_layers=1)))
    model.save_pretrained(tmp_path / "body")
    HfViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "body")
    export(str(tmp_path / "body"), tmp_path / "program", "torch_export")
    assert run(tmp_path / "program", str(photo)) == "[[1, 5, 192], [1, 192]]"


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_translators_as_encoder_and_decoder_with_cache(translator, tmp_path, kind):
    position = {"onnx": "sinusoidal", "torch_export": "relative"}[kind]
    folder = translator(position)
    report = export(str(folder), tmp_path / kind, kind)
    assert set(report.differences) == {"encoder", "decoder"} and max(report.differences.values()) < 1e-4
    assert run(tmp_path / kind, "ein zwei") == greedy(folder, "ein zwei")


def greedy(folder, text):
    model = HfTransformerForConditionalGeneration.from_pretrained(folder)
    tokenizer = make_tokenizer()
    ids = model.generate(**tokenizer([text], return_tensors="pt"), num_beams=1, do_sample=False)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_position": "pre", "lm_head_bias": True, "activation_function": "gelu", "scale_embedding": False},
        {"position_embedding": "learned", "position_offset": 2, "embedding_norm": True, "tie_word_embeddings": False},
        {
            **{"position_embedding": "relative", "norm_type": "rms_norm", "norm_position": "pre"},
            **{"activation_function": "geglu_tanh", "use_bias": False},
        },
    ],
    ids=str,
)
def test_log_probabilities_of_ctranslate2(tmp_path, fields):
    pytest.importorskip("ctranslate2")
    model = randomise(HfTransformerForConditionalGeneration(HfTransformerConfig(**{**TEXT, **fields})))
    model.save_pretrained(tmp_path / "ours")
    make_tokenizer().save_pretrained(tmp_path / "ours")
    report = export(str(tmp_path / "ours"), tmp_path / "theirs", "ctranslate2")
    assert report.differences["translator"] < 1e-4
    rounded = export(str(tmp_path / "ours"), tmp_path / "rounded", "ctranslate2", "int8")
    assert 1e-4 < rounded.differences["translator"] < 0.1  # of the original, which rounding leaves as it is
    if not fields:
        text = run(tmp_path / "theirs", "ein zwei")
        assert text.startswith(greedy_prefix(model, "ein zwei"))


def greedy_prefix(model, text):
    tokenizer = make_tokenizer()
    ids = model.eval().generate(**tokenizer([text], return_tensors="pt"), max_new_tokens=6)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def test_what_cannot_be_exported_is_refused(classifier, translator, tmp_path):
    folder, target = str(classifier[1]), tmp_path / "new"
    with pytest.raises(ValueError, match="format must be one of onnx, torch_export, aoti, ctranslate2, got 'tflite'"):
        export(folder, target, "tflite")
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, int8 for onnx, got 'bfloat16'"):
        export(folder, target, "onnx", "bfloat16")
    with pytest.raises(ValueError, match="format ctranslate2 must be of a translator, got HfViTForImageClass"):
        export(folder, target, "ctranslate2")
    with pytest.raises(ValueError, match=r"position_embedding must be one of sinusoidal, .* got 'rope'"):
        export(str(translator("rope")), target, "ctranslate2")
    with pytest.raises(ValueError, match="folder must be a new or an empty one"):
        export(folder, folder, "onnx")
    with pytest.raises(ValueError, match="source must be a classifier, body or translator of this package"):
        export(str(tmp_path / "nothing"), target, "onnx")
    HfViTModel(HfViTConfig.from_variant("vit_tiny_patch16_32", num_hidden_layers=1)).save_pretrained(tmp_path / "body")
    HfViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "body")
    with pytest.raises(ValueError, match="data must be for a classifier or a translator, got a HfViTModel"):
        export(str(tmp_path / "body"), target, "onnx", data={})
    assert not target.exists()
