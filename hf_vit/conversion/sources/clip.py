"""Vision towers of CLIP (2103.00020), SigLIP (2303.15343) and SigLIP 2 (2502.14786) of transformers.

Shapes: D hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, constant, reshaped, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.sources.vit import LABELS, check_activation, patch_fit, values_of
from hf_vit.conversion.vit_rules import LAYER, channels_last_kernel, learned_positions, patch_kernel, projections
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "patch_size", "num_channels"),
)
_TOWER, _POOLER = "vision_model", "vit.pooler.poolings.attention"


class _Tower(Source):
    """The tower alone, or under a classifier that takes the mean of its patches."""

    library = "transformers"
    name: str  # of the family, as in the names of its classes

    def config(self, peer: Peer) -> HfViTConfig:
        config, tower = peer.config, peer.config
        if has_head := hasattr(peer, "classifier"):
            tower = config.vision_config
        return HfViTConfig(
            **values_of(tower, _FIELDS),
            **({name: getattr(config, name) for name in LABELS} if has_head else {}),
            attention_probs_dropout_prob=tower.attention_dropout,
            **self._fields(tower, has_head),
        )

    def _fields(self, tower: Any, has_head: bool) -> dict[str, Any]:
        raise NotImplementedError

    def _options(self, config: HfViTConfig) -> dict[str, Any]:
        return values_of(config, ("image_size",))

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        check_activation(config)
        tower = {
            **values_of(config, _FIELDS),
            "attention_dropout": config.attention_probs_dropout_prob,
            **self._options(config),
        }
        if isinstance(model, HfViTModel):
            make = getattr(transformers, f"{self.name}VisionModel")
            return make(getattr(transformers, f"{self.name}VisionConfig")(**tower))
        labels = {name: getattr(config, name) for name in LABELS}
        whole = getattr(transformers, f"{self.name}Config")(vision_config=tower, **labels)
        return getattr(transformers, f"{self.name}ForImageClassification")(whole)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if hasattr(peer, "classifier") else HfViTModel

    def prefix(self, peer: Peer) -> str:
        return "" if hasattr(peer, _TOWER) else f"{_TOWER}."

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        layer, embeddings = f"{_TOWER}.encoder.layers.*", f"{_TOWER}.embeddings"
        return [
            self._kernel(config, f"{embeddings}.patch_embedding.weight"),
            same("vit.embeddings.patch_embedding.projection.bias", f"{embeddings}.patch_embedding.bias"),
            learned_positions(config, f"{embeddings}.position_embedding.weight", batched=False),
            *projections(config, *(f"{layer}.self_attn.{part}_proj" for part in "qkv")),
            same(f"{LAYER}.attention.out_proj.*", f"{layer}.self_attn.out_proj.*"),
            same(f"{LAYER}.attention_norm.*", f"{layer}.layer_norm1.*"),
            same(f"{LAYER}.mlp_norm.*", f"{layer}.layer_norm2.*"),
            same(f"{LAYER}.mlp.*.*", f"{layer}.mlp.*.*"),
            *self._own_rules(config),
            same("vit.norm.*", f"{_TOWER}.post_layernorm.*"),
            same("classifier.*", "classifier.*"),
        ]

    def _own_rules(self, config: HfViTConfig) -> list[Rule]:
        raise NotImplementedError

    def _kernel(self, config: HfViTConfig, theirs: str) -> Rule:
        return patch_kernel(config, theirs)


# Of a checkpoint that was published with its tower of texts, what is not the tower of images.
_UNUSED = (r"position_ids$", r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_(scale|bias)$")


class Clip(_Tower):
    peers: ClassVar[tuple[str, ...]] = ("CLIPForImageClassification", "CLIPVisionModel")
    ignored: ClassVar[tuple[str, ...]] = _UNUSED
    loads: ClassVar = {"CLIPModel": "CLIPVisionModel"}
    name = "CLIP"

    def _fields(self, tower: Any, has_head: bool) -> dict[str, Any]:
        pooling = {"pooling": "mean", "pooling_norm": "none"} if has_head else {"pooling_norm": "after"}
        return {
            "image_size": tower.image_size,
            "patch_bias": False,
            "embedding_norm": True,
            **patch_fit(tower),
            **pooling,
        }

    def _own_rules(self, config: HfViTConfig) -> list[Rule]:
        rules = [
            reshaped(
                "vit.embeddings.class_token",
                f"{_TOWER}.embeddings.class_embedding",
                lambda token: token[None, None],
                lambda token: token[0, 0],
            ),
            same("vit.embeddings.norm.*", f"{_TOWER}.pre_layrnorm.*"),
        ]
        if config.pooling_norm == "none":  # the classifier reads the tokens before the tower's norm
            width = config.hidden_size
            rules.append(constant(f"{_TOWER}.post_layernorm.weight", lambda: torch.ones(width)))
            rules.append(constant(f"{_TOWER}.post_layernorm.bias", lambda: torch.zeros(width)))
        return rules


class _Siglip(_Tower):
    ignored: ClassVar[tuple[str, ...]] = _UNUSED
    name = "Siglip"

    def _fields(self, tower: Any, has_head: bool) -> dict[str, Any]:
        pools = getattr(tower, "vision_use_head", True)
        return {
            **self._sizes(tower),
            "use_class_token": False,
            "pooling": "mean" if has_head else "attention" if pools else "none",
            "pooling_norm": "before",
        }

    def _sizes(self, tower: Any) -> dict[str, Any]:
        return {"image_size": tower.image_size, **patch_fit(tower)}

    def _options(self, config: HfViTConfig) -> dict[str, Any]:
        return {**super()._options(config), "vision_use_head": config.pooling == "attention"}

    def _own_rules(self, config: HfViTConfig) -> list[Rule]:
        head, width = f"{_TOWER}.head", config.hidden_size
        if config.pooling != "attention":
            return []
        return [
            same(f"{_POOLER}.query", f"{head}.probe"),
            *(
                Rule(
                    (f"{_POOLER}.q_proj.{kind}", f"{_POOLER}.kv_proj.{kind}"),
                    (f"{head}.attention.in_proj_{kind}",),
                    lambda tensors: [part.clone() for part in tensors[0].split([width, 2 * width])],
                    lambda tensors: [torch.cat(tensors)],
                )
                for kind in ("weight", "bias")
            ),
            same(f"{_POOLER}.out_proj.*", f"{head}.attention.out_proj.*"),
            same(f"{_POOLER}.norm.*", f"{head}.layernorm.*"),
            same(f"{_POOLER}.mlp.*.*", f"{head}.mlp.*.*"),
        ]


class SiglipClassifier(_Siglip):
    """It leaves the tower's pooling unread, if there is one."""

    peers: ClassVar[tuple[str, ...]] = ("SiglipForImageClassification",)
    ignored = (*_Siglip.ignored, rf"^{_TOWER}\.head\.")


class SiglipTower(_Siglip):
    peers: ClassVar[tuple[str, ...]] = ("SiglipVisionModel",)
    loads: ClassVar = {"SiglipModel": "SiglipVisionModel"}


class _Siglip2(_Siglip):
    """SigLIP 2's towers take patches of images of any shape, each the pixels row by row with their channels last. The
    positions of other shapes than their own square they resample bilinearly, ours bicubically."""

    name = "Siglip2"

    def _sizes(self, tower: Any) -> dict[str, Any]:
        return {"image_size": int(tower.num_patches**0.5) * tower.patch_size}

    def _options(self, config: HfViTConfig) -> dict[str, Any]:
        rows, columns = config.grid_size
        if rows != columns:
            raise ValueError(f"image_size must be as high as wide in patches, got {config.image_size}")
        return {"num_patches": rows * columns, "vision_use_head": config.pooling == "attention"}

    def _kernel(self, config: HfViTConfig, theirs: str) -> Rule:
        return channels_last_kernel(config, theirs)


class Siglip2Classifier(_Siglip2):
    peers: ClassVar[tuple[str, ...]] = ("Siglip2ForImageClassification",)
    ignored = SiglipClassifier.ignored


class Siglip2Tower(_Siglip2):
    peers: ClassVar[tuple[str, ...]] = ("Siglip2VisionModel",)
    loads: ClassVar = {"Siglip2Model": "Siglip2VisionModel"}


SOURCES = [Clip(), SiglipClassifier(), SiglipTower(), Siglip2Classifier(), Siglip2Tower()]
