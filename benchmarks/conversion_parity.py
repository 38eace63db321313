"""Converted models beside the models that they were: the same random weights, images and texts, the largest
differences, there and back.

    python benchmarks/conversion_parity.py [NAME ...] [--max-parameters 320] [--output benchmarks/results/...json]

Peers are built by name, at full size, without their published weights: timm's by `timm.create_model`, those of
transformers by their configuration's defaults, but for what the name says. Differences are of logits (of a model
without classes: of its pooled vector or its tokens), of every layer's features, of bf16, both in bf16, and of the peer
that our model was converted back to, each as a share of the largest value of the peer's. Rows of another run that are
not run again are kept, and the table beside the JSON is written anew after each row.
"""

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import nn

from hf_vit.conversion.models import from_peer, to_peer

OUTPUT = Path(__file__).parent / "results" / "conversion_parity.json"
TIMM_MODULES = ("vision_transformer", "deit", "cait", "beit", "eva", "naflexvit")
_PLAIN = {"num_labels": 1000}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": _PLAIN,
    "ViTModel": {"add_pooling_layer": False},
    "DeiTForImageClassification": _PLAIN,
    "DeiTForImageClassificationWithTeacher": _PLAIN,
    "ViTMAEModel": {"mask_ratio": 0.0},
    "ViTMSNForImageClassification": _PLAIN,
    "Dinov2ForImageClassification": {**_PLAIN, "patch_size": 14},
    "Dinov2Model": {"patch_size": 14, "use_swiglu_ffn": True},
    "Dinov2WithRegistersForImageClassification": {**_PLAIN, "patch_size": 14},
    "DINOv3ViTModel": {"num_register_tokens": 4},
    "BeitForImageClassification": {**_PLAIN, "use_relative_position_bias": True},
    "Data2VecVisionForImageClassification": {**_PLAIN, "use_shared_relative_position_bias": True},
    "CLIPVisionModel": {},
    "SiglipVisionModel": {},
    "Siglip2VisionModel": {},
}
# Of texts; what stands behind a class's name tells two rows of it apart.
TEXTS: dict[str, dict[str, Any]] = {
    "MarianMTModel": {},
    "T5ForConditionalGeneration": {},
    "T5ForConditionalGeneration, v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "BartForConditionalGeneration": {},
    "MBartForConditionalGeneration": {},
}


def randomised(peer: nn.Module) -> nn.Module:
    """The model in eval mode with every weight random, at scales that let each say something and none explode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if not parameter.requires_grad:  # positions that are computed
                continue
            is_matrix = parameter.ndim in (2, 4) and "table" not in name
            scale = 1.4 * parameter[0].numel() ** -0.5 if is_matrix else 0.5
            if name.endswith("Attention.q.weight"):  # of T5, which scales no scores: each would choose one token
                scale *= peer.config.d_kv**-0.5
            if ".wi_" in name:  # two branches of T5 that are multiplied
                scale *= 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return peer.eval()


def of_transformers(name: str) -> nn.Module:
    options = dict(TRANSFORMERS.get(name) or TEXTS.get(name) or {})
    model_class = getattr(transformers, name.partition(",")[0])
    arguments = {key: options.pop(key) for key in ("add_pooling_layer",) if key in options}
    return model_class(model_class.config_class(**options), **arguments)


def images_for(peer: nn.Module, config: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Images for our model, and what the peer wants in their place."""
    shape = (1, config.num_channels, *config.image_shape)
    pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    arguments = {"pixel_values": pixel_values}
    rows, columns = config.grid_size
    if type(peer).__name__ == "ViTMAEModel":  # all patches, in their order
        arguments["noise"] = torch.arange(float(rows * columns))[None]
    if type(peer).__name__.startswith("Siglip2"):
        patches = pixel_values.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 3, 5, 1)
        arguments = {
            "pixel_values": patches.flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]]),
        }
    return pixel_values, arguments


def answers(model: nn.Module, arguments: dict[str, torch.Tensor], with_features: bool = False) -> list[torch.Tensor]:
    """Logits of the model, and the output of each layer where asked for."""
    if not isinstance(model, transformers.PreTrainedModel):
        (pixel_values,) = arguments.values()
        found = [model(pixel_values)]
        if with_features and not hasattr(model, "dist_token"):
            features = model.forward_intermediates(pixel_values, output_fmt="NLC", intermediates_only=True)
            found += [each[0] if isinstance(each, tuple) else each for each in features]
        return found
    outputs = model(**arguments, output_hidden_states=with_features)
    fields = ("logits", "pooler_output", "last_hidden_state")
    found = [next(outputs[field] for field in fields if outputs.get(field) is not None)]
    return found + list(outputs.hidden_states[1:] if with_features else ())


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.float() - expected.float()).abs().max() / expected.float().abs().max())


@torch.inference_mode()
def compare(library: str, peer: nn.Module) -> dict[str, Any]:
    """A row of the table."""
    ours = from_peer(peer, dict(peer.state_dict()))  # of one memory, so that the largest fit
    pixel_values, arguments = images_for(peer, ours.config)
    expected = answers(peer, arguments, with_features=True)
    got = answers(ours, {"pixel_values": pixel_values}, with_features=True)
    if len(expected[0].shape) == 3:  # tokens, of a peer that pools nothing
        got[0] = ours(pixel_values).last_hidden_state
    features = [
        difference(states[:, states.shape[1] - theirs.shape[1] :], theirs)
        for states, theirs in zip(got[1:], expected[1:])
    ]
    row = {
        "parameters": sum(parameter.numel() for parameter in peer.parameters()),
        "logits": difference(got[0], expected[0]),
        "features": max(features) if features else None,
    }
    try:
        back = to_peer(ours, library, dict(ours.state_dict()))
        row["back"] = difference(answers(back, images_for(back, ours.config)[1])[0], expected[0])
        row["back to"] = type(back).__name__
        del back
    except ValueError as error:
        row["back"], row["back to"] = None, str(error)
    peer, ours = peer.bfloat16(), ours.bfloat16()
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in arguments.items()}
    if "noise" in half:
        half["noise"] = arguments["noise"]
    theirs = answers(peer, half)[0]
    outputs = ours(pixel_values.bfloat16())
    row["bf16"] = difference(
        outputs.last_hidden_state if theirs.ndim == 3 else outputs[0 if "logits" in outputs else 1], theirs
    )
    return row


@torch.inference_mode()
def compare_texts(peer: Any) -> dict[str, Any]:
    """A row of the table, of an encoder-decoder model."""
    ours: Any = from_peer(peer, dict(peer.state_dict()))
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(5, 1000, (2, length), generator=generator) for length in (24, 16))
    texts = {"input_ids": source, "decoder_input_ids": target}
    expected, got = (model(**texts, output_hidden_states=True) for model in (peer, ours))
    # Below the first layer scales may stand elsewhere, and above the last the norm.
    names = ("encoder_hidden_states", "decoder_hidden_states")
    pairs = [pair for name in names for pair in list(zip(got[name], expected[name]))[1:-1]]
    row = {
        "parameters": sum(parameter.numel() for parameter in peer.parameters()),
        "logits": difference(got.logits, expected.logits),
        "features": max(difference(*pair) for pair in pairs),
    }
    back: Any = to_peer(ours, "transformers", dict(ours.state_dict()))
    row["back"], row["back to"] = difference(back(**texts).logits, expected.logits), type(back).__name__
    del back
    halves = [model.bfloat16()(**texts).logits for model in (ours, peer)]
    return {**row, "bf16": difference(*halves)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown, by their names."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1e}"

    lines = ["| Model | Parameters (M) | Logits | Features | Back | bf16 |", "|---|---|---|---|---|---|"]
    for name, row in sorted(rows.items()):
        numbers = [number(row[column]) for column in ("logits", "features", "back", "bf16")]
        lines.append(f"| `{name}` | {row['parameters'] / 1e6:.1f} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("names", nargs="*", help="models of timm, or classes of transformers; all by default")
    parser.add_argument("--max-parameters", type=float, default=320, help="in millions, of models that are run")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    known = {name: "timm" for module in TIMM_MODULES for name in timm.list_models(module=module)}
    known.update(dict.fromkeys((*TRANSFORMERS, *TEXTS), "transformers"))
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else {}
    for name in arguments.names or known:
        library = known[name]
        if library == "timm":
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            if size > arguments.max_parameters * 1e6:
                continue
        peer = timm.create_model(name) if library == "timm" else of_transformers(name)
        try:
            row = compare_texts(randomised(peer)) if name in TEXTS else compare(library, randomised(peer))
            rows[name] = {"library": library, **row}
        except ValueError as error:
            print(f"{name}: {error}", flush=True)
            continue
        finally:
            del peer
            gc.collect()
        print(name, {key: value for key, value in rows[name].items() if key != "back to"}, flush=True)
        versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
        arguments.output.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
        arguments.output.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
