"""The translator of before the Transformer, to compare with: LSTMs, with attention over the source or without.

With attention: Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine Translation"
(1508.04025), general score. Without: the decoder knows the source only as the encoder's last state, one vector of
fixed size (Sutskever, Vinyals and Le, 1409.3215).
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput


class RecurrentConfig(PreTrainedConfig):
    """Sizes of the LSTMs: `hidden_size` of the decoder, half of it for each direction of the encoder."""

    model_type = "recurrent_translator"

    def __init__(
        self,
        vocab_size=8000,
        embedding_size=256,
        hidden_size=448,
        num_layers=2,
        dropout=0.3,
        use_attention=True,
        is_encoder_decoder=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.use_attention = use_attention
        super().__init__(is_encoder_decoder=is_encoder_decoder, **{"tie_word_embeddings": True, **kwargs})


class Encoder(nn.Module):
    """Token ids (B, S) to states (B, S, hidden_size); padding behind the texts does not count."""

    main_input_name = "input_ids"

    def __init__(self, config, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding
        # The weights are small, as an output's must be; inputs as small would leave the LSTMs silent for long.
        self.embed_scale = embedding.embedding_dim**0.5
        self.dropout = nn.Dropout(config.dropout)
        sizes = (config.embedding_size, config.hidden_size // 2, config.num_layers)
        self.lstm = nn.LSTM(*sizes, batch_first=True, bidirectional=True, dropout=config.dropout)

    def embed(self, input_ids):
        """(B, S) -> (B, S, embedding_size)"""
        return self.dropout(self.embedding(input_ids) * self.embed_scale)

    def forward(self, input_ids, attention_mask=None, **kwargs):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = mask.sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(self.embed(input_ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        return BaseModelOutput(last_hidden_state=states)


class RecurrentTranslator(PreTrainedModel, GenerationMixin):
    """Encoder and decoder LSTM with one embedding for source, target and output."""

    config_class = RecurrentConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"output.weight": "encoder.embedding.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.encoder = Encoder(config, nn.Embedding(config.vocab_size, config.embedding_size))
        self.bridge = nn.Linear(size, config.num_layers * size)
        self.lstm = nn.LSTM(config.embedding_size, size, config.num_layers, batch_first=True, dropout=config.dropout)
        self.score = nn.Linear(size, size, bias=False) if config.use_attention else None
        self.combine = nn.Linear(2 * size if config.use_attention else size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.embedding_size, config.vocab_size, bias=False)
        self.post_init()
        self.generation_config.use_cache = False  # every step decodes from the start: simple, and linear in its length

    def _init_weights(self, module):
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)

    def get_encoder(self, modality=None):
        return self.encoder

    def get_input_embeddings(self):
        return self.encoder.embedding

    def get_output_embeddings(self):
        return self.output

    def prepare_decoder_input_ids_from_labels(self, labels):
        """The labels one place to the right, behind the token that starts the decoder."""
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat((start, labels[:, :-1]), 1)
        return shifted.masked_fill_(shifted == -100, self.config.pad_token_id)

    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, encoder_outputs=None, **kwargs
    ) -> Seq2SeqLMOutput:
        """Logits (B, T, vocab_size) of the token that follows each of `decoder_input_ids` (B, T)."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask)
        states = encoder_outputs.last_hidden_state  # (B, S, hidden_size)
        mask = attention_mask.bool() if attention_mask is not None else states.new_ones(states.shape[:2]).bool()
        decoded = self.dropout(self._decode(states, mask, decoder_input_ids))  # (B, T, hidden_size)
        if self.score is not None:
            scores = self.score(decoded) @ states.transpose(1, 2)  # (B, T, S)
            weights = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min).softmax(-1)
            decoded = torch.cat((decoded, weights @ states), dim=-1)
        return Seq2SeqLMOutput(logits=self.output(self.combine(decoded).tanh()))

    def _decode(self, states, mask, decoder_input_ids):
        """The decoder starts from what each direction of the encoder ended with."""
        forward, backward = states.chunk(2, -1)
        last = (mask.sum(1) - 1).clamp(min=0)
        end = forward[torch.arange(len(last), device=last.device), last]
        start = self.bridge(torch.cat((end, backward[:, 0]), -1)).tanh()  # (B, num_layers * hidden_size)
        start = start.view(len(last), self.config.num_layers, -1).transpose(0, 1).contiguous()
        return self.lstm(self.encoder.embed(decoder_input_ids), (start, torch.zeros_like(start)))[0]

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, encoder_outputs=None, **kwargs):
        inputs = {"attention_mask": attention_mask, "encoder_outputs": encoder_outputs}
        return {**inputs, "decoder_input_ids": input_ids}


AutoConfig.register(RecurrentConfig.model_type, RecurrentConfig)
AutoModelForSeq2SeqLM.register(RecurrentConfig, RecurrentTranslator)
RecurrentConfig.register_for_auto_class()
RecurrentTranslator.register_for_auto_class("AutoModelForSeq2SeqLM")
