"""Costs of a model before it runs: parameters, multiply-accumulates and memory, in closed form."""

from hf_vit.cost.forecast import Forecast, Remedy, forecast, largest_batch, memory_bytes
from hf_vit.cost.memory import Memory, Setup, vit_memory
from hf_vit.cost.models import vit_config
from hf_vit.cost.parts import Part, attention_macs, attention_matrix_bytes, mlp_macs
from hf_vit.cost.table import as_text
from hf_vit.cost.vit import vit_parts

__all__ = [
    "Forecast",
    "Memory",
    "Part",
    "Remedy",
    "Setup",
    "as_text",
    "attention_macs",
    "attention_matrix_bytes",
    "forecast",
    "largest_batch",
    "memory_bytes",
    "mlp_macs",
    "vit_config",
    "vit_memory",
    "vit_parts",
]
