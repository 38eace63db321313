"""A model as files that run without this package, compared with it before they are handed over."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_vit.conversion.checkpoint import read_own
from hf_vit.export import ctranslate2, formats, scripts
from hf_vit.export.measure import Score, classifier_scores, translator_scores
from hf_vit.export.parts import Part, image_part, translator_parts
from hf_vit.extras import extra
from hf_vit.files import check_new_folder, write_folder
from hf_vit.models.modeling_hf_transformer import HfTransformerForConditionalGeneration
from hf_vit.models.pipeline_translation import TARGET_TOKENIZER
from hf_vit.text.tokenization import Tokenizers

# Largest differences from the model in the same precision that rounding explains, in parts of the largest output.
# How much 8 bits lose depends on the weights: it is measured, not limited.
_LIMITS = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.2, "int8": float("inf")}


@dataclass
class Report:
    """Result of an export.

    Args:
        folder: where.
        differences: largest difference of each part's outputs from the original's, in parts of their largest.
        is_dynamic_in_size: whether images of any size are taken.
        scores: metrics of the original and of what was exported, on given data.
    """

    folder: Path
    differences: dict[str, float]
    is_dynamic_in_size: bool = True
    scores: list[Score] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{part}: differs by {each:.2g} of the largest output" for part, each in self.differences.items()]
        if not self.is_dynamic_in_size:
            lines.append("for images of the model's own size alone")
        lines += map(str, self.scores)
        return "\n".join([*lines, str(self.folder)])


def export(
    source: str,
    folder: str | Path,
    format: str,
    dtype: str = "float32",
    revision: str | None = None,
    data: dict[str, str] | None = None,
) -> Report:
    """Write a model of this package in another format: one file (of a translator, one of its encoder and one of its
    decoder) with its processor and a program of ten lines, `run.py`.

    Args:
        source: folder, or id on the Hub, of a Vision Transformer or a translator of this package.
        folder: where to; it appears once it is complete and compared with the original.
        format: "onnx", "torch_export", "aoti" (compiled for this processor) or, of translators, "ctranslate2".
        dtype: "float32", "float16", "bfloat16" or "int8", as far as the format has it.
        revision: of the id on the Hub.
        data: on which to measure a classifier or a translator before and after; see
            [`~hf_vit.export.measure.classifier_scores`].

    Raises:
        ValueError: if `folder` is there already; the source is none of ours; the format has no such type or cannot
            express the model; or what was written computes something else.
    """
    if format not in formats.DTYPES:
        raise ValueError(f"format must be one of {', '.join(formats.DTYPES)}, got {format!r}")
    if dtype not in formats.DTYPES[format]:
        raise ValueError(f"dtype must be one of {', '.join(formats.DTYPES[format])} for {format}, got {dtype!r}")
    check_new_folder(folder)
    own = read_own(source, revision)
    if own is None:
        raise ValueError(f"source must be a classifier, body or translator of this package (see convert): {source!r}")
    model, processor = own.peer.eval(), own.processor
    is_translator = isinstance(model, HfTransformerForConditionalGeneration)
    if format == "ctranslate2" and not is_translator:
        raise ValueError(f"format ctranslate2 must be of a translator, got {type(model).__name__}")
    if data is not None and not is_translator and not hasattr(model, "classifier"):
        raise ValueError(f"data must be for a classifier or a translator, got a {type(model).__name__}")
    formats.check_size(model, format, dtype)
    report = Report(Path(folder), {})

    def write(stage: Path) -> None:
        stage.mkdir()
        if format == "ctranslate2":
            ctranslate2.write(model, processor, stage, dtype)
            report.differences["translator"] = _check_ctranslate2(model, processor, stage, dtype)
        elif is_translator:
            for part in translator_parts(_cast(model, dtype)):
                report.differences[part.name] = _write_part(part, stage, format, dtype)
        else:
            _write_image(model, stage, format, dtype, report)
        processor.save_pretrained(stage)
        _describe(model, processor, stage, format, dtype)
        if data is not None:
            measure = translator_scores if is_translator else classifier_scores
            report.scores = measure(source, stage, format, data)

    write_folder(Path(folder), write)
    return report


def _cast(model: Any, dtype: str) -> Any:
    return model if dtype in ("float32", "int8") else model.to(getattr(torch, dtype))


def _write_image(model: Any, stage: Path, format: str, dtype: str, report: Report) -> None:
    """For images of any size, or where the format cannot, of the model's own."""
    model = _cast(model, dtype)
    try:
        report.differences["model"] = _write_part(image_part(model, True), stage, format, dtype)
    except _NoGraph:
        for file in stage.iterdir():
            file.unlink()
        report.is_dynamic_in_size = False
        report.differences["model"] = _write_part(image_part(model, False), stage, format, dtype)


class _NoGraph(ValueError):
    """A graph that torch cannot make, or not in this format."""


def _write_part(part: Part, stage: Path, format: str, dtype: str) -> float:
    """Write a graph and return its largest difference from the original."""
    try:
        path = formats.write(part, stage, format)
    except Exception as error:  # of torch's tracing, of its exporter and of its compiler, each its own
        raise _NoGraph(f"format {format} cannot express the {part.name}: {_first_line(error)}") from error
    if dtype == "int8":
        formats.quantize(path)
    function, largest = formats.load(path, format), 0.0
    for inputs in part.samples():
        with torch.no_grad():
            expected = part.function(**inputs)
        try:
            found = function(inputs)
        except Exception as error:  # of what runs the format
            sizes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
            raise _NoGraph(f"the exported {part.name} fails for {sizes}: {_first_line(error)}") from error
        for got, wanted in zip(found, expected, strict=True):
            largest = max(largest, _difference(got, wanted))
    return _checked(part.name, largest, dtype)


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference in parts of the largest value; infinite where the shapes differ or a value is not finite."""
    if got.shape != wanted.shape or not got.isfinite().all():
        return float("inf")
    return ((got.float() - wanted.float()).abs().max() / wanted.float().abs().max().clamp(min=1e-6)).item()


def _checked(name: str, largest: float, dtype: str) -> float:
    if not (math.isfinite(largest) and largest <= _LIMITS[dtype]):
        raise ValueError(f"the exported {name} must compute what the model does, its outputs differ by {largest:.3g}")
    return largest


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_ctranslate2(model: Any, tokenizers: Tokenizers, stage: Path, dtype: str) -> float:
    """Largest difference of the log-probabilities of random texts."""
    with extra("export"):
        from ctranslate2 import Translator
    translator = Translator(str(stage), device="cpu")
    config, generator = model.config, torch.Generator().manual_seed(0)
    special = {config.eos_token_id, config.decoder_start_token_id, config.pad_token_id}
    sizes = (config.encoder_vocab_size or config.vocab_size, config.vocab_size)
    words = [
        [i for i in range(min(len(tokenizer), size)) if i not in special] for tokenizer, size in zip(tokenizers, sizes)
    ]
    largest = 0.0
    for length in (1, 6, 15):
        source, target = (
            [known[i] for i in torch.randint(len(known), (length,), generator=generator).tolist()] for known in words
        )
        source, target = [*source, config.eos_token_id], [*target, config.eos_token_id]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([source]),
                decoder_input_ids=torch.tensor([[config.decoder_start_token_id, *target[:-1]]]),
            ).logits[0]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(target)[:, None])[:, 0]
        tokens = [tokenizers.source.convert_ids_to_tokens(source), tokenizers.target.convert_ids_to_tokens(target)]
        (result,) = translator.score_batch([tokens[0]], [tokens[1][:-1]])
        largest = max(largest, _difference(torch.tensor(result.log_probs), expected))
    return _checked("translator", largest, dtype)


def _describe(model: Any, processor: Any, stage: Path, format: str, dtype: str) -> None:
    """The program that runs it, and what it reads besides the processor."""
    config = model.config
    if not isinstance(model, HfTransformerForConditionalGeneration):
        has_head = hasattr(model, "classifier")
        if has_head:
            _write_json(stage / "labels.json", [config.id2label[i] for i in range(config.num_labels)])
        (stage / "run.py").write_text(scripts.image_script(format, has_head), encoding="utf-8")
        return
    eos, generation = config.eos_token_id, model.generation_config
    if format != "ctranslate2":
        facts = {
            "tokenizer": ".",
            "target_tokenizer": "." if processor.target is processor.source else TARGET_TOKENIZER,
            "start": config.decoder_start_token_id,
            "eos": list(eos) if isinstance(eos, (list, tuple)) else [eos],
            "max_length": generation.max_length or 128,
        }
        _write_json(stage / "generation.json", facts)
    heads = config.decoder_attention_heads
    shape = (config.decoder_layers, heads, config.d_model // heads)
    own = "float32" if dtype == "int8" else dtype
    (stage / "run.py").write_text(scripts.translator_script(format, shape, own), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["Report", "export"]
