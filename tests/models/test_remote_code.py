"""A saved folder works for those who have transformers and not this package."""

import ast
import json
import re
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, TINY
from PIL import Image
from transformers import ViTImageProcessor
from transformers.dynamic_module_utils import get_relative_import_files

import hf_vit
from hf_vit import HfViTBackbone, HfViTConfig, HfViTForImageClassification, HfViTImageProcessor, HfViTModel
from hf_vit.isolated.fresh_process import fresh_process

MODELS = Path(hf_vit.__file__).parent / "models"
MODES = ["RGB", "L", "LA", "RGBA", "P", "1"]
SPECIMEN = "attention-rope_2d"
# It comes with an image processor of ours.
PHOTO_SPECIMEN = "cls-learned"
PHOTO_PROCESSOR = HfViTImageProcessor(size={"height": 16, "width": 16}, crop_pct=0.9, crop_mode="border")
BROUGHT_BY_TRANSFORMERS = ["huggingface_hub", "numpy"]
# What the core package does not ask for.
OPTIONAL = [
    "torchvision",
    "accelerate",
    "timm",
    "peft",
    "datasets",
    "evaluate",
    "scipy",
    "sklearn",
    "pandas",
    "matplotlib",
]


# --- the files that travel -------------------------------------------------------------------------------------------


def imports(path):
    """(level, module, names) of every import, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.py")), ids=lambda path: path.stem)
def test_travelling_files_import_only_what_every_user_has(path):
    siblings = {sibling.stem for sibling in MODELS.glob("*.py")}
    optional = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Try)
        for child in ast.walk(node)
        if isinstance(child, ast.Import | ast.ImportFrom)
        for name in [child.module if isinstance(child, ast.ImportFrom) else child.names[0].name]
    }
    for level, module, names in imports(path):
        if level:
            assert level == 1 and module in siblings, f"from {'.' * level}{module} import {', '.join(names)}"
        elif module not in optional:
            allowed = {"torch", "transformers", *BROUGHT_BY_TRANSFORMERS, *sys.stdlib_module_names}
            if path.stem.startswith("image_processing"):  # transformers has no image processor without Pillow
                allowed.add("PIL")
            assert module.split(".")[0] in allowed, module


@pytest.mark.parametrize("name", BROUGHT_BY_TRANSFORMERS)
def test_transformers_requires_what_travelling_files_take_from_it(name):
    required = [line for line in requires("transformers") if "extra ==" not in line]
    assert any(re.match(rf"{name}\b", line.replace("-", "_")) for line in required)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.py")), ids=lambda path: path.stem)
def test_transformers_finds_every_file_that_a_file_needs(path):
    """Its regular expression finds what Python's own grammar finds, no less, and nothing in a docstring."""
    needed, unread = set(), [path]
    while unread:
        for level, module, _ in imports(unread.pop()):
            sibling = MODELS / f"{module}.py"
            if level and sibling not in needed:
                needed.add(sibling)
                unread.append(sibling)
    assert {Path(name) for name in get_relative_import_files(path)} == needed


# --- loaded without the package --------------------------------------------------------------------------------------


def picture(mode):
    """Oblong, colourful, partly transparent."""
    gradient = Image.linear_gradient("L")
    bands = [gradient, Image.radial_gradient("L"), gradient.rotate(90), gradient.rotate(180)]
    image = Image.merge("RGBA", bands).resize((40, 25))
    return image.convert("RGB").convert(mode) if mode in ("P", "1") else image.convert(mode)


def save_everything(folder):
    """Each public class, and the classifier in each architecture; returns the models by the names of their folders."""
    torch.manual_seed(0)
    models = {
        name: HfViTForImageClassification(HfViTConfig(**{**TINY, **options}))
        for name, options in ARCHITECTURES.items()
    }
    labels_patches = {"patch_embedding": "lvvit", "residual_scale": 0.5, "use_token_labeling_head": True}
    models["labels of patches"] = HfViTForImageClassification(HfViTConfig(**TINY, **labels_patches))
    models["model"] = HfViTModel(HfViTConfig(**TINY, pooling=["mean", "attention"]))
    models["backbone"] = HfViTBackbone(HfViTConfig(**TINY, out_indices=[0, 2], apply_layernorm=False))
    for name, model in models.items():
        for parameter in model.eval().parameters():
            parameter.data = torch.randn(parameter.shape) * 0.2
        model.save_pretrained(folder / name)
    HfViTConfig.from_variant("deit_tiny_distilled_patch16_224", pooling="max").save_pretrained(folder / "config")
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, do_convert_rgb=True)
    processor.save_pretrained(folder / SPECIMEN)
    PHOTO_PROCESSOR.save_pretrained(folder / PHOTO_SPECIMEN)
    return models


def add_inputs(folder, models):
    for name, model in models.items():
        generator = torch.Generator().manual_seed(1)
        torch.save(
            torch.randn(2, 3, *model.config.image_shape, generator=generator), folder / name / "pixel_values.pt"
        )
    for mode in MODES:
        picture(mode).save(folder / SPECIMEN / f"{mode}.png")
        picture(mode).convert("RGB").save(folder / SPECIMEN / f"{mode}-converted.png")
    picture("RGB").save(folder / PHOTO_SPECIMEN / "photo.png")


def run_without_the_package(source, target, hidden):
    program = Path(__file__).with_name("remote_code_program.py").read_text()
    with fresh_process(hidden=hidden, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") as stranger:
        stranger.run(program, SOURCE=str(source), TARGET=str(target))
    return torch.load(target / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The models, their folders, and what two processes made of them: one loads what was saved here, the other, which
    lacks all that can be lacking, what the first saved."""
    folder = tmp_path_factory.mktemp("remote")
    folders = [folder / name for name in ("original", "again", "once-more")]
    models = save_everything(folders[0])
    results = []
    for source, target, hidden in zip(folders, folders[1:], ([], OPTIONAL)):
        add_inputs(source, models)
        target.mkdir()
        results.append(run_without_the_package(source, target, hidden))
    return models, folders, results


def test_every_class_computes_the_same_without_the_package(saved):
    models, (original, *_), results = saved
    for generation in results:
        assert generation["config"]["pooling"] == "max" and generation["config"]["hidden_size"] == 192
        for name, model in models.items():
            pixel_values = torch.load(original / name / "pixel_values.pt")
            peers = {type(model): model}
            if isinstance(model, HfViTForImageClassification):
                peers = {HfViTForImageClassification: model, HfViTModel: model.vit}
                peers[HfViTBackbone] = HfViTBackbone.from_pretrained(original / name)
            assert len(generation[name]) == len(peers)
            for outputs, peer in zip(generation[name].values(), peers.values()):
                with torch.no_grad():
                    torch.testing.assert_close(outputs, dict(peer(pixel_values)))


def test_saving_again_writes_the_same_files(saved):
    _, (original, *others), _ = saved
    for folder in original.iterdir():
        files = {path.name for path in folder.iterdir() if path.suffix in (".py", ".json", ".safetensors")}
        assert "configuration_hf_vit.py" in files
        for other in others:
            assert files <= {path.name for path in (other / folder.name).iterdir()}
            for path in folder.glob("*.py"):
                assert path.read_text() == (MODELS / path.name).read_text()
                assert path.read_text() == (other / folder.name / path.name).read_text()
            config, config_again = (HfViTConfig.from_pretrained(each / folder.name) for each in (original, other))
            assert config_again.to_dict() == config.to_dict()


def normalised(image):
    """The tensor that the processor should make of it."""
    resized = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    return (
        torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(1, 16, 16, 3).movedim(3, 1) / 127.5 - 1
    )


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_go_through_processor_and_pipelines(saved, mode):
    models, _, results = saved
    white = Image.new("RGBA", picture(mode).size, "white")
    # transformers 5.17 drops what is transparent, later versions lay it on white.
    readings = [picture(mode).convert("RGB"), Image.alpha_composite(white, picture(mode).convert("RGBA"))]
    for generation in results:
        images = generation["images"][SPECIMEN]
        result, converted = images[mode], images[f"{mode}-converted"]
        differences = [(result["pixel_values"] - normalised(reading)).abs().max() for reading in readings]
        assert min(differences) < 0.02
        pixel_values = converted["pixel_values"]  # pipelines convert first
        torch.testing.assert_close(pixel_values, normalised(readings[0]), atol=0.02, rtol=0)
        with torch.no_grad():
            body = models[SPECIMEN].vit(pixel_values)
            scores = models[SPECIMEN](pixel_values).logits[0].softmax(-1)
        assert {answer["label"]: answer["score"] for answer in result["classes"]} == {
            f"LABEL_{i}": pytest.approx(score, abs=1e-4) for i, score in enumerate(scores.tolist())
        }
        torch.testing.assert_close(result["tokens"], body.last_hidden_state, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(result["pooled"], body.pooler_output, atol=1e-4, rtol=1e-4)


def test_pillow_serves_where_torchvision_is_missing(saved):
    backends = [generation["images"][SPECIMEN]["backend"] for generation in saved[2]]
    assert backends[1] == "ViTImageProcessorPil"


def test_our_image_processor_travels(saved):
    models, (original, *others), results = saved
    pixel_values = PHOTO_PROCESSOR(picture("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores = models[PHOTO_SPECIMEN](pixel_values).logits[0].softmax(-1)
    for generation in results:
        images = generation["images"][PHOTO_SPECIMEN]
        assert images["backend"] == "HfViTImageProcessor"
        torch.testing.assert_close(images["photo"]["pixel_values"], pixel_values)
        got = {answer["label"]: answer["score"] for answer in images["photo"]["classes"]}
        assert got == {f"LABEL_{i}": pytest.approx(score, abs=1e-4) for i, score in enumerate(scores.tolist())}
    for folder in (original, *others[:1]):
        assert (folder / PHOTO_SPECIMEN / "image_processing_hf_vit.py").is_file()
        auto_map = json.loads((folder / PHOTO_SPECIMEN / "preprocessor_config.json").read_text())["auto_map"]
        assert auto_map == {"AutoImageProcessor": "image_processing_hf_vit.HfViTImageProcessor"}
