"""A saved Transformer is all there when it is loaded, whatever was tied, untied or adapted before."""

import pytest
import torch
from safetensors.torch import load_file
from transformer_tools import make_model, tokens

from hf_vit import HfTransformerForCausalLM, HfTransformerForConditionalGeneration

peft = pytest.importorskip("peft")

HEAD, DECODER, ENCODER = "lm_head.weight", "model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"
CLASSES = [HfTransformerForConditionalGeneration, HfTransformerForCausalLM]
INPUTS = {
    HfTransformerForConditionalGeneration: {"input_ids": tokens(), "decoder_input_ids": tokens(seed=2)},
    HfTransformerForCausalLM: {"input_ids": tokens()},
}


@torch.no_grad()
def saved_and_loaded(model, folder):
    """The model loaded again; fails unless all its weights came from the file and it computes the same."""
    model.eval().save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    inputs = INPUTS[type(model)]
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=0, rtol=0)
    return again


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("field", ["tie_word_embeddings", "share_encoder_decoder_embeddings"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_switch_set_after_construction_loses_no_weight(tmp_path, model_class, field, share, tie):
    model = make_model(model_class, share_encoder_decoder_embeddings=share, tie_word_embeddings=tie)
    setattr(model.config, field, not getattr(model.config, field))
    again = saved_and_loaded(model, tmp_path)
    if field == "tie_word_embeddings" and tie:
        assert HEAD in load_file(tmp_path / "model.safetensors")
        assert again.lm_head.weight is not again.get_decoder().embed_tokens.weight


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("model_class", CLASSES)
def test_tie_weights_follows_the_configuration(tmp_path, model_class, share, tie):
    model = make_model(model_class, share_encoder_decoder_embeddings=share, tie_word_embeddings=tie)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_decoder().embed_tokens.weight
    again = saved_and_loaded(model, tmp_path)
    assert again.lm_head.weight is again.get_decoder().embed_tokens.weight


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("own", ["head", "decoder"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_a_table_of_ones_own_is_saved(tmp_path, model_class, own, share, tie):
    """With the decoder's own table, head and encoder still share the old one, which no switch says."""
    model = make_model(model_class, share_encoder_decoder_embeddings=share, tie_word_embeddings=tie)
    table = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    if own == "head":
        model.lm_head.weight = table
    else:
        model.get_decoder().embed_tokens.weight = table
    saved_and_loaded(model, tmp_path)


def test_the_given_weights_are_saved(tmp_path):
    """As the Trainer gives them; what is tied in them as in the model is in the file once."""
    model = make_model()
    state_dict = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    state_dict[HEAD] = state_dict[ENCODER] = state_dict[DECODER]
    model.save_pretrained(tmp_path, state_dict=dict(state_dict))
    saved = load_file(tmp_path / "model.safetensors")
    assert DECODER in saved and HEAD not in saved and ENCODER not in saved
    for name, tensor in saved.items():
        assert torch.equal(tensor, state_dict[name])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["qkv_proj"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["model.decoder.embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": "all-linear"},
        {"target_modules": ["qkv_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["qkv_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
def test_a_merged_adapter_is_saved_whole(tmp_path, share, options):
    """peft sets `tie_word_embeddings` to False where it finds two tables, and leaves the head tied."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, init_lora_weights=False, **options)
    adapted = peft.get_peft_model(make_model(share_encoder_decoder_embeddings=share), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    saved_and_loaded(adapted.eval().merge_and_unload(), tmp_path)


@pytest.mark.parametrize("tie", [True, False])
@torch.no_grad()
def test_the_decoders_body_is_saved_and_loaded_by_itself(tmp_path, tie):
    model = make_model(HfTransformerForCausalLM, tie_word_embeddings=tie)
    body = model.base_model
    body.save_pretrained(tmp_path)
    again, report = type(body).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    states = body(tokens()).last_hidden_state
    assert torch.equal(again(tokens()).last_hidden_state, states)
    assert torch.equal(again(inputs_embeds=again.get_input_embeddings()(tokens())).last_hidden_state, states)
    decoder, report = HfTransformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == (set() if tie else {HEAD})
    assert torch.equal(decoder.base_model(tokens()).last_hidden_state, states)
    whole = make_model()
    whole.save_pretrained(tmp_path / "whole")
    part, report = type(body).from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(part.decoder.embed_tokens.weight, whole.get_decoder().embed_tokens.weight)
