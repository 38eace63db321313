"""BART and mBART of transformers."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel

from hf_vit.conversion.rules import Peer, Rule, same
from hf_vit.conversion.source import Source
from hf_vit.conversion.text_rules import fields_of, is_tied, layer_rules, output_rules
from hf_vit.models.configuration_hf_transformer import HfTransformerConfig
from hf_vit.models.modeling_hf_transformer import HfTransformerForConditionalGeneration

_OFFSET = 2  # of the positions in both


class Bart(Source):
    """BART, whose layers norm after each branch; its embeddings are normed too."""

    library = "transformers"
    ours = HfTransformerConfig
    peers = ("BartForConditionalGeneration",)
    ignored = (r"^model\.shared\.weight$",)  # a third name of the tables
    expressed = frozenset({"lm_head_bias", "encoder_vocab_size", "max_position_embeddings"})
    norm_position = "post"
    peer_classes: tuple[type[Any], type[Any]] = (transformers.BartForConditionalGeneration, transformers.BartConfig)

    def config(self, peer: Peer) -> HfTransformerConfig:
        return HfTransformerConfig(
            **fields_of(peer.config),
            **is_tied(peer),
            vocab_size=peer.config.vocab_size,
            lm_head_bias=True,
            position_embedding="learned",
            position_offset=_OFFSET,
            embedding_norm=True,
            norm_position=self.norm_position,
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        model_class, config_class = self.peer_classes
        return model_class(
            config_class(
                **fields_of(config),
                vocab_size=config.vocab_size,
                tie_word_embeddings=config.tie_word_embeddings,
                forced_eos_token_id=None,
            )
        )

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfTransformerForConditionalGeneration

    def rules(self, config: HfTransformerConfig, peer: Peer) -> list[Rule]:
        rules = output_rules(config.lm_head_bias, config.vocab_size)
        for stack in ("encoder", "decoder"):
            body = f"model.{stack}"
            rules += [
                same(f"{body}.embed_tokens.weight", f"{body}.embed_tokens.weight"),
                same(f"{body}.token_position.weight", f"{body}.embed_positions.weight"),
                same(f"{body}.embedding_norm.*", f"{body}.layernorm_embedding.*"),
                same(f"{body}.norm.*", f"{body}.layer_norm.*"),
                *layer_rules(stack),
            ]
        return rules


class MBart(Bart):
    """mBART, whose layers norm before each branch, and once at the end."""

    peers = ("MBartForConditionalGeneration",)
    norm_position = "pre"
    peer_classes = (transformers.MBartForConditionalGeneration, transformers.MBartConfig)


SOURCES = [Bart(), MBart()]
