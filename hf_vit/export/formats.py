"""Graphs as files: ONNX, torch.export, and compiled ahead of time by AOTInductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_vit.export.parts import Part
from hf_vit.extras import extra

ONNX_LIMIT = 2**31 - 2**24  # bytes of weights in one file, which may be no longer than 2 GiB with its graph
Function = Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]
ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2", "aoti": ".pt2"}
DTYPES = {
    "onnx": ("float32", "float16", "int8"),
    "torch_export": ("float32", "float16", "bfloat16"),
    "aoti": ("float32", "bfloat16"),
    "ctranslate2": ("float32", "float16", "bfloat16", "int8"),
}


def write(part: Part, folder: Path, kind: str) -> Path:
    """The file of a graph; of ONNX with weights of more than 2 GB, these lie beside it in a file `.onnx.data`.

    Raises:
        RuntimeError: torch cannot make the graph, or what the format needs of it.
    """
    path = folder / f"{part.name}{ENDINGS[kind]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = part.program()
        if kind == "torch_export":
            torch.export.save(program, path)
        elif kind == "aoti":
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        else:
            with extra("export"):
                import onnxscript  # noqa: F401  torch asks for it late
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamo=True,
                verbose=False,
                external_data=_weight_bytes(part.function) > ONNX_LIMIT,
            )
    return path


def _weight_bytes(function: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*function.parameters(), *function.buffers()))


def check_size(model: nn.Module, kind: str, dtype: str) -> None:
    """Raises `ValueError` if the format has no file for so many weights."""
    count = sum(tensor.numel() for tensor in model.parameters())
    if kind == "onnx" and dtype == "int8" and count > ONNX_LIMIT:
        raise ValueError(f"dtype must be float32 or float16 for a model of {count:,} weights in onnx, got {dtype!r}")


def quantize(path: Path) -> None:
    """Rounds the weights of an ONNX file's matmuls to 8 bits, in place, by onnxruntime's dynamic quantiser."""
    import logging

    with extra("export"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded, weights = path.with_suffix(".int8.onnx"), path.with_suffix(".onnx.data")
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises to preprocess, which the exporter has done
    try:
        quantize_dynamic(path, rounded, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.getLogger().setLevel(level)
    rounded.replace(path)
    weights.unlink(missing_ok=True)  # of the larger file, if it had them outside


def load(path: Path, kind: str) -> Function:
    """The function in a file, read back as whoever gets it reads it."""
    if kind == "onnx":
        return _load_onnx(path)
    if kind == "torch_export":
        function: Any = torch.export.load(path).module()
    else:
        function = torch._inductor.aoti_load_package(str(path))
    return lambda inputs: list(function(**inputs))


def _load_onnx(path: Path) -> Function:
    with extra("export"):
        import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {name: inputs[name].numpy() for name in names})]

    return run


__all__ = ["DTYPES", "ENDINGS", "Function", "check_size", "load", "quantize", "write"]
