"""Marian's translators of transformers."""

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


class Marian(Source):
    library = "transformers"
    ours = HfTransformerConfig
    peers = ("MarianMTModel",)
    ignored = (r"embed_positions\.weight$", r"^model\.shared\.weight$")  # in closed form; a third name of the tables
    expressed = frozenset({"lm_head_bias", "encoder_vocab_size"})

    def config(self, peer: Peer) -> HfTransformerConfig:
        tied = is_tied(peer)
        return HfTransformerConfig(
            **fields_of(peer.config),
            **tied,
            vocab_size=peer.config.decoder_vocab_size,
            encoder_vocab_size=peer.config.vocab_size,
            lm_head_bias=True,
        )

    def peer(self, model: PreTrainedModel) -> nn.Module:
        config: Any = model.config
        return transformers.MarianMTModel(
            transformers.MarianConfig(
                **fields_of(config),
                vocab_size=config.encoder_vocab_size or config.vocab_size,
                decoder_vocab_size=config.vocab_size,
                share_encoder_decoder_embeddings=config.share_encoder_decoder_embeddings,
                tie_word_embeddings=config.tie_word_embeddings,
                forced_eos_token_id=None,
            )
        )

    def model_class(self, peer: Peer) -> type[PreTrainedModel]:
        return HfTransformerForConditionalGeneration

    def rules(self, config: HfTransformerConfig, peer: Peer) -> list[Rule]:
        stacks = ("encoder", "decoder")
        return [
            *(same(f"model.{stack}.embed_tokens.weight", f"model.{stack}.embed_tokens.weight") for stack in stacks),
            *(rule for stack in stacks for rule in layer_rules(stack)),
            *output_rules(config.lm_head_bias, config.vocab_size),
        ]


SOURCES = [Marian()]
