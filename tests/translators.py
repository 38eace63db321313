"""Small translators of transformers' own, and what they are given."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

MARIAN = {
    "vocab_size": 60,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 59,
    "decoder_start_token_id": 59,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "scale_embedding": True,
    "activation_function": "swish",
}
BART = {**MARIAN, "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2, "activation_function": "gelu"}
T5 = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 8,
    "num_heads": 4,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}


def batch():
    """Sources of three lengths, padded on the right, and the beginnings of targets."""
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(30) < torch.tensor([[30], [17], [1]])).long()
    return {
        "input_ids": torch.randint(2, 59, (3, 30), generator=generator),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(2, 59, (3, 33), generator=generator),
    }


WORDS = ["ein", "zwei", "drei", "vier", "fünf", "one", "two", "three", "four", "five"]


def make_tokenizer(eos=True):
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if eos:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
