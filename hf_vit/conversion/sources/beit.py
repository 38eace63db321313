"""BEiT (2106.08254) and Data2Vec's vision model (2202.03555) of transformers."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.sources.vit import FIELDS, LABELS, check_activation, values_of
from hf_vit.conversion.vit_rules import LAYER, learned_positions, patch_kernel, projections, relative_bias
from hf_vit.models.configuration_hf_vit import HfViTConfig
from hf_vit.models.modeling_hf_vit import HfViTForImageClassification, HfViTModel

_SCHEMES = {
    "learned": "use_absolute_position_embeddings",
    "relative_bias": "use_shared_relative_position_bias",
    "relative_bias_per_layer": "use_relative_position_bias",
}
_SHARED = tuple(name for name in (*FIELDS, *LABELS, "drop_path_rate") if name != "qkv_bias")


class Beit(Source):
    library = "transformers"
    peers = ("BeitForImageClassification", "BeitModel")
    ignored = (r"embeddings\.mask_token$",)
    body, name = "beit", "Beit"

    def config(self, peer: Peer) -> HfViTConfig:
        theirs = peer.config
        schemes = [ours for ours, field in _SCHEMES.items() if getattr(theirs, field)]
        norm = "after" if theirs.use_mean_pooling else "before"
        has_pooler = peer.base_model.pooler is not None
        return HfViTConfig(
            **values_of(theirs, _SHARED),
            key_bias=False,
            layer_scale_init_value=theirs.layer_scale_init_value or None,
            position_embedding=schemes or "none",
            pooling="none" if not has_pooler else "mean" if theirs.use_mean_pooling else "cls",
            pooling_norm=norm if has_pooler or norm == "before" else "none",
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        check_activation(config)
        theirs = getattr(transformers, f"{self.name}Config")(
            **values_of(config, _SHARED),
            **{field: ours in config.position_embeddings for ours, field in _SCHEMES.items()},
            layer_scale_init_value=config.layer_scale_init_value or 0.0,
            use_mean_pooling=config.norm_position != "before",
        )
        if isinstance(model, HfViTModel):
            return getattr(transformers, f"{self.name}Model")(theirs, add_pooling_layer=config.pooling != "none")
        return getattr(transformers, f"{self.name}ForImageClassification")(theirs)

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfViTForImageClassification if hasattr(peer, "classifier") else HfViTModel

    def rules(self, config: HfViTConfig, peer: Peer) -> list[Rule]:
        embeddings, body = f"{self.body}.embeddings", peer.base_model
        table = "relative_position_bias_table"
        if hasattr(body, "layers"):
            layer, attention, shared = f"{self.body}.layers.*", "attention.{}_proj", "shared_position_bias"
            names = [f"{layer}.attention.{part}_proj" for part in "qkvo"]
            names += [f"{layer}.mlp.fc1", f"{layer}.mlp.fc2", f"{layer}.relative_position_bias.{table}"]
        else:
            layer, shared = f"{self.body}.encoder.layer.*", "encoder.relative_position_bias"
            attention = f"{layer}.attention.attention"
            names = [f"{attention}.{part}" for part in ("query", "key", "value")]
            names += [f"{layer}.attention.output.dense", f"{layer}.intermediate.dense", f"{layer}.output.dense"]
            names.append(f"{attention}.relative_position_bias.{table}")
        positions = [learned_positions(config, f"{embeddings}.position_embeddings")]
        return [
            same("vit.embeddings.class_token", f"{embeddings}.cls_token"),
            *(positions if "learned" in config.position_embeddings else []),
            patch_kernel(config, f"{embeddings}.patch_embeddings.projection.weight"),
            same("vit.embeddings.patch_embedding.projection.bias", f"{embeddings}.patch_embeddings.projection.bias"),
            *projections(config, *names[:3]),
            same(f"{LAYER}.attention.out_proj.*", f"{names[3]}.*"),
            same(f"{LAYER}.mlp.fc1.*", f"{names[4]}.*"),
            same(f"{LAYER}.mlp.fc2.*", f"{names[5]}.*"),
            relative_bias(config, f"{LAYER}.relative_position_bias", names[6]),
            relative_bias(config, "vit.relative_position_bias", f"{self.body}.{shared}.{table}"),
            same(f"{LAYER}.attention_norm.*", f"{layer}.layernorm_before.*"),
            same(f"{LAYER}.mlp_norm.*", f"{layer}.layernorm_after.*"),
            same(f"{LAYER}.layer_scale1.scale", f"{layer}.lambda_1"),
            same(f"{LAYER}.layer_scale2.scale", f"{layer}.lambda_2"),
            same(
                "vit.norm.*",
                f"{self.body}.pooler.layernorm.*" if config.norm_after_pooling else f"{self.body}.layernorm.*",
            ),
            same("classifier.*", "classifier.*"),
        ]


class Data2VecVision(Beit):
    peers = ("Data2VecVisionForImageClassification", "Data2VecVisionModel")
    body, name = "data2vec_vision", "Data2VecVision"


SOURCES = [Beit(), Data2VecVision()]
