"""Show what a Vision Transformer looks at, what speaks for a class, and what its positions say about each other.

Plain functions from a model or its outputs to tensors, a file an idea; `explain_image` puts them together, `picture`
draws them. The models are those of this package, also when they were loaded by `trust_remote_code`; put them in eval
mode first, or dropout is part of what is seen.
"""

from hf_vit.explain.alignment import Alignment, alignment
from hf_vit.explain.attention import (
    attention_distance,
    attention_maps,
    attention_of_all_tokens,
    attention_rollout,
    attention_to_grid,
)
from hf_vit.explain.cam import LogitsOf, reshape_transform
from hf_vit.explain.curves import Curves, deletion_and_insertion
from hf_vit.explain.evidence import Evidence, has_evidence, patch_evidence
from hf_vit.explain.explanation import ClassExplanation, Explanation, class_index, explain_image
from hf_vit.explain.features import feature_components
from hf_vit.explain.groups import of_all_tokens
from hf_vit.explain.objects import ObjectExplanation, ObjectsExplanation, explain_objects, query_relevance
from hf_vit.explain.pooling import pooling_weights
from hf_vit.explain.positions import position_similarity, relative_position_bias, rotary_kernel
from hf_vit.explain.reading import Reading, read_image
from hf_vit.explain.relevance import attention_relevance

__all__ = [
    "Alignment",
    "ClassExplanation",
    "Curves",
    "Evidence",
    "Explanation",
    "LogitsOf",
    "ObjectExplanation",
    "ObjectsExplanation",
    "Reading",
    "alignment",
    "attention_distance",
    "attention_maps",
    "attention_of_all_tokens",
    "attention_relevance",
    "attention_rollout",
    "attention_to_grid",
    "class_index",
    "deletion_and_insertion",
    "explain_image",
    "explain_objects",
    "feature_components",
    "has_evidence",
    "of_all_tokens",
    "patch_evidence",
    "pooling_weights",
    "position_similarity",
    "query_relevance",
    "read_image",
    "relative_position_bias",
    "reshape_transform",
    "rotary_kernel",
]
