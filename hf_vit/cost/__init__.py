"""Costs of a model before it runs: parameters, multiply-accumulates and memory, in closed form."""

from hf_vit.cost.families import FAMILIES, family_of
from hf_vit.cost.forecast import Forecast, Remedy, forecast, largest_batch, memory_bytes
from hf_vit.cost.memory import Memory, Setup, vit_memory
from hf_vit.cost.models import model_config
from hf_vit.cost.parts import Part, attention_macs, attention_matrix_bytes, mlp_macs
from hf_vit.cost.table import as_text
from hf_vit.cost.vit import vit_parts

__all__ = [
    "FAMILIES",
    "Forecast",
    "Memory",
    "Part",
    "Remedy",
    "Setup",
    "as_text",
    "attention_macs",
    "attention_matrix_bytes",
    "family_of",
    "forecast",
    "largest_batch",
    "memory_bytes",
    "mlp_macs",
    "model_config",
    "vit_memory",
    "vit_parts",
]
