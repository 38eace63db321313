"""Programs of ten lines that run an exported model without this package."""

from __future__ import annotations

_IMAGE = """\
# python run.py PHOTO
import json, pathlib, sys
{imports}
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder = pathlib.Path(__file__).parent
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
{load}
outputs = {call}
print({answer})
"""
_LOGITS = 'max(zip(outputs[0][0].tolist(), json.loads((folder / "labels.json").read_text())))[1]'
_FEATURES = "[list(each.shape) for each in outputs]"

_TRANSLATOR = """\
# python run.py TEXT
import json, pathlib, sys
{imports}
from transformers import AutoTokenizer
folder = pathlib.Path(__file__).parent
facts = json.loads((folder / "generation.json").read_text())
tokenizer, target = (AutoTokenizer.from_pretrained(folder / facts[name]) for name in ("tokenizer", "target_tokenizer"))
inputs, tokens = dict(tokenizer([sys.argv[1]], return_tensors="{tensors}")), [facts["start"]]
{load}
mask, past, = inputs["attention_mask"], {empty}
(source,) = {encode}
while tokens[-1] not in facts["eos"] and len(tokens) < facts["max_length"]:
    logits, past = {decode}
    tokens.append(int(logits[0].argmax()))
print(target.decode(tokens, skip_special_tokens=True))
"""

_CTRANSLATE2 = """\
# python run.py TEXT
import pathlib, sys
import ctranslate2
from transformers import AutoTokenizer
folder = pathlib.Path(__file__).parent
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer.convert_ids_to_tokens(tokenizer(sys.argv[1])["input_ids"])
result = ctranslate2.Translator(str(folder)).translate_batch([tokens], beam_size=1)[0]
print(tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0]), skip_special_tokens=True))
"""

_LOADS = {
    "onnx": "onnxruntime.InferenceSession(folder / '{name}.onnx')",
    "torch_export": "torch.export.load(folder / '{name}.pt2').module()",
    "aoti": "torch._inductor.aoti_load_package(str(folder / '{name}.pt2'))",
}


def image_script(kind: str, has_head: bool) -> str:
    """The program of a classifier, which prints a photo's class, or of a body, which prints the shapes it returns."""
    pixels = 'processor(Image.open(sys.argv[1]), return_tensors="pt")["pixel_values"]'
    call = f'model.run(None, {{"pixel_values": {pixels}.numpy()}})'
    return _IMAGE.format(
        imports="import onnxruntime" if kind == "onnx" else "import torch",
        load=f"model = {_LOADS[kind].format(name='model')}",
        call=call if kind == "onnx" else f"model(pixel_values={pixels})",
        answer=_LOGITS if has_head else _FEATURES,
    )


def translator_script(kind: str, shape: tuple[int, int, int], dtype: str) -> str:
    """The program that translates a text, greedily.

    Args:
        kind: the format.
        shape: (layers, heads, head size) of the decoder.
        dtype: of keys and values.
    """
    if kind == "ctranslate2":
        return _CTRANSLATE2
    layers, heads, head_size = shape
    is_onnx, size = kind == "onnx", f"({layers}, 2, 1, {heads}, 0, {head_size})"
    inputs = '"input_ids": {ids}, "attention_mask": mask, "source": source, "past": past'
    ids = "numpy.array([tokens[-1:]])" if is_onnx else "torch.tensor([tokens[-1:]])"
    given = f"{{{inputs.format(ids=ids)}}}"
    return _TRANSLATOR.format(
        imports="import numpy, onnxruntime" if is_onnx else "import torch",
        tensors="np" if is_onnx else "pt",
        load=f"encoder, decoder = {', '.join(_LOADS[kind].format(name=name) for name in ('encoder', 'decoder'))}",
        empty=f"numpy.zeros({size}, numpy.{dtype})" if is_onnx else f"torch.zeros({size}, dtype=torch.{dtype})",
        encode='encoder.run(None, {"input_ids": inputs["input_ids"], "attention_mask": mask})'
        if is_onnx
        else 'encoder(input_ids=inputs["input_ids"], attention_mask=mask)',
        decode=f"decoder.run(None, {given})" if is_onnx else f"decoder(**{given})",
    )


__all__ = ["image_script", "translator_script"]
