"""Costs of the encoder-decoder and of the detector beside what torch counts and keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vit import HfDetrConfig, HfTransformerConfig, HfTransformerForConditionalGeneration, HfViTConfig
from hf_vit.cost.detr import detr_parts
from hf_vit.cost.transformer import cache_bytes, generated_token_macs, transformer_parts
from hf_vit.models.modeling_hf_detr import HfDetrForObjectDetection

BATCH, SOURCE, TARGET = 2, 5, 7
TEXTS = {
    "paper": {},
    "gated, apart": {
        "activation_function": "swiglu",
        "share_encoder_decoder_embeddings": False,
        "encoder_vocab_size": 13,
        "tie_word_embeddings": False,
        "lm_head_bias": True,
        "norm_position": "pre",
        "position_embedding": "learned",
        "max_position_embeddings": 9,
    },
    "relative": {"position_embedding": "relative", "qk_norm": True, "norm_type": "rms_norm", "use_bias": False},
    "relative_xl": {"position_embedding": "relative_xl", "embedding_norm": True},
}


def counted(run):
    counter = FlopCounterMode(display=False)
    counter.mod_tracker._fw_pre_hook = counter.mod_tracker._fw_post_hook = lambda *arguments: None
    with counter:
        run()
    return counter.get_total_flops()


def translator(case):
    sizes = {"vocab_size": 11, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24}
    heads = {"decoder_ffn_dim": 20, "encoder_attention_heads": 4, "decoder_attention_heads": 2, "dropout": 0.0}
    return HfTransformerConfig(**{**sizes, **heads, "attn_implementation": "eager", **case})


@pytest.mark.parametrize("case", TEXTS.values(), ids=TEXTS)
def test_a_translators_parameters_flops_and_cache(case):
    config = translator(case)
    model = HfTransformerForConditionalGeneration(config).eval()
    parts = transformer_parts(config, BATCH, SOURCE, TARGET)
    assert sum(part.parameters for part in parts) == model.num_parameters()
    source, target = torch.ones(BATCH, SOURCE, dtype=torch.long), torch.ones(BATCH, TARGET, dtype=torch.long)
    kept = {}

    def read(tokens=target, **options):
        kept["outputs"] = model(source, decoder_input_ids=tokens, **options)

    with torch.no_grad():
        assert counted(lambda: read(use_cache=False)) == 2 * sum(part.macs for part in parts)
    step = sum(part.macs + part.backward_macs for part in parts)
    assert counted(lambda: (read(use_cache=False), kept["outputs"].logits.sum().backward())) == 2 * step
    with torch.no_grad():
        read(use_cache=True)
        outputs = kept["outputs"]
        cache = outputs["cache"] if "cache" in outputs else outputs["past_key_values"]
        layers = [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
        assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == cache_bytes(
            config, BATCH, SOURCE, TARGET
        )
        options = {"past_key_values": cache, "encoder_outputs": (outputs.encoder_last_hidden_state,)}
        of_token = counted(lambda: read(target[:, :1], **options))
    xl = config.position_embedding == "relative_xl"
    once = (BATCH - 1) * config.decoder_layers * (TARGET + 1) * config.d_model**2 if xl else 0  # whatever the batch
    assert of_token == 2 * (BATCH * generated_token_macs(config, SOURCE, TARGET + 1) - once)


DETECTORS = {
    "two stages": {"encoder_layers": 1},
    "set prediction": {
        "two_stage": False,
        "box_relative_bias": False,
        "with_box_refine": False,
        "class_loss": "softmax",
    },
    "learnt boxes": {"two_stage": False, "box_relative_bias": False, "qk_norm": True, "group_detr": 2},
}


@pytest.mark.parametrize("case", DETECTORS.values(), ids=DETECTORS)
def test_a_detectors_parameters_and_flops(case):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    backbone = HfViTConfig(image_size=[16, 24], patch_size=4, out_indices=[1, 2], **sizes)
    sizes = {"d_model": 16, "decoder_layers": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 28, "num_queries": 30}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "num_labels": 3}
    config = HfDetrConfig(backbone_config=backbone, attn_implementation="eager", **sizes, **heads, **case)
    config.backbone_config._attn_implementation = "eager"
    with torch.device("meta"):
        model = HfDetrForObjectDetection(config)
    parts = detr_parts(config, BATCH)
    assert sum(part.parameters for part in parts) == model.num_parameters()
    model = HfDetrForObjectDetection(config).eval()
    with torch.no_grad():
        flops = counted(lambda: model(torch.zeros(BATCH, 3, 16, 24)))
    assert flops == 2 * sum(part.macs for part in parts)
