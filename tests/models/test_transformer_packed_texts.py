"""Several texts in one row, told apart by `position_ids`: as transformers' Llama, they do not see one another."""

import pytest
import torch
from transformer_tools import ARCHITECTURES, make_model, tokens
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from hf_vit import HfTransformerForCausalLM
from hf_vit.models.cache_argument import CACHE_NAME

LENGTHS = [[4, 3, 5], [6, 1, 5]]
POSITIONS = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in LENGTHS])
ROWS = tokens(2, 12)


def llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **options
    )
    return LlamaForCausalLM(config).eval()


def apart(model):
    """The logits of each text alone, at its place in the rows."""
    return torch.stack(
        [
            torch.cat([model(text[None], use_cache=False).logits[0] for text in row.split(lengths)])
            for row, lengths in zip(ROWS, LENGTHS)
        ]
    )


MODELS = {
    name: lambda options=options: make_model(HfTransformerForCausalLM, **options)
    for name, options in ARCHITECTURES.items()
}


@pytest.fixture(params=[*MODELS, "llama"])
def model(request):
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # flex attention compiles half a minute
        yield MODELS[request.param]() if request.param != "llama" else llama()


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_texts_of_a_row_do_not_see_one_another(model, implementation):
    """Llama is the peer: the same holds of it, where it keeps no cache."""
    expected = apart(model)
    model.set_attn_implementation(implementation)
    logits = model(ROWS, position_ids=POSITIONS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    one_row = model(ROWS[:1], position_ids=POSITIONS[:1], use_cache=False).logits
    torch.testing.assert_close(one_row, expected[:1], atol=1e-4, rtol=1e-4)


def test_positions_of_one_row_serve_all(model):
    logits = model(ROWS, position_ids=POSITIONS[:1], use_cache=False).logits
    torch.testing.assert_close(logits[:1], apart(model)[:1], atol=1e-4, rtol=1e-4)
    expanded = model(ROWS, position_ids=POSITIONS[:1].expand(2, -1), use_cache=False).logits
    torch.testing.assert_close(logits, expanded, atol=1e-6, rtol=1e-6)


def test_a_mask_decides_alone(model):
    """As in Llama: with a mask the texts are one, at the positions given, whose distances are the slots'."""
    mask = torch.ones_like(ROWS)
    if "relative" in getattr(model.config, "position_embedding", ""):
        with pytest.raises(ValueError, match=f"position_ids .* position_embedding={model.config.position_embedding},"):
            model(ROWS, attention_mask=mask, position_ids=POSITIONS)
        return
    logits = model(ROWS, attention_mask=mask, position_ids=POSITIONS).logits
    assert (logits - apart(model)).abs().max() > 1e-2
    prefix = model(ROWS[:, :7], attention_mask=mask[:, :7], position_ids=POSITIONS[:, :7])
    cached = model(ROWS[:, 7:], attention_mask=mask, position_ids=POSITIONS[:, 7:], **{CACHE_NAME: prefix[CACHE_NAME]})
    torch.testing.assert_close(torch.cat((prefix.logits, cached.logits), 1), logits, atol=1e-4, rtol=1e-4)


def test_a_block_diagonal_mask_of_ones_own_says_the_same(model):
    text = (POSITIONS == 0).cumsum(1)
    mask = (text[:, :, None] == text[:, None]) & torch.ones(12, 12, dtype=torch.bool).tril()
    logits = model(ROWS, attention_mask=mask[:, None], position_ids=POSITIONS, use_cache=False).logits
    torch.testing.assert_close(logits, apart(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", MODELS)
def test_texts_in_a_row_have_no_cache(architecture):
    """Llama returns one, and lets the texts see one another; here that is no way to be wrong."""
    model = MODELS[architecture]()
    outputs = model(ROWS, position_ids=POSITIONS)
    assert outputs.get(CACHE_NAME) is None
    torch.testing.assert_close(outputs.logits, apart(model), atol=1e-4, rtol=1e-4)
    for options in (
        {"use_cache": True},
        {CACHE_NAME: DynamicCache()},
        {CACHE_NAME: model(ROWS)[CACHE_NAME]},
    ):
        with pytest.raises(ValueError, match="position_ids of several texts in a row need use_cache=False"):
            model(ROWS, position_ids=POSITIONS, **options)


@pytest.mark.parametrize("architecture", MODELS)
def test_training_on_texts_in_a_row_is_training_on_them_one_by_one(architecture):
    model = MODELS[architecture]()
    labels = ROWS.masked_fill(POSITIONS == 0, -100)  # no text predicts the next one's first token
    model(ROWS, position_ids=POSITIONS, labels=labels).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    count = int((labels != -100).sum())
    for row, lengths in zip(ROWS, LENGTHS):
        for text in row.split(lengths):
            model(text[None], labels=text[None], num_items_in_batch=count).loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(gradients[name], expected, atol=2e-5, rtol=1e-4, msg=name)


def test_a_row_of_texts_may_be_longer_than_the_table():
    model = make_model(HfTransformerForCausalLM, position_embedding="learned", max_position_embeddings=6)
    logits = model(ROWS, position_ids=POSITIONS).logits
    torch.testing.assert_close(logits, apart(model), atol=1e-4, rtol=1e-4)


def test_positions_that_cannot_be_are_refused():
    model = make_model(HfTransformerForCausalLM, position_embedding="learned", max_position_embeddings=12)
    with pytest.raises(ValueError, match=r"position_ids must be in \[0, 12\) \(max_position_embeddings\), got -1"):
        model(ROWS, position_ids=torch.arange(-1, 11)[None])
    with pytest.raises(ValueError, match=r"position_ids must be of shape \(2, 12\).* got \(2, 11\)"):
        model(ROWS, position_ids=POSITIONS[:, :11])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"position_ids of several texts .* got 'flash_attention_2'"):
        model(ROWS, position_ids=POSITIONS)


@pytest.mark.parametrize("position_embedding", ["relative", "relative_xl"])
def test_schemes_of_distances_take_positions_that_count_tokens(position_embedding):
    """Padding and gaps in the mask change no distance that they see; other positions are refused."""
    model = make_model(HfTransformerForCausalLM, position_embedding=position_embedding)
    mask = torch.ones_like(ROWS)
    mask[0, :3] = mask[1, 5:7] = 0
    expected = model(ROWS, attention_mask=mask).logits
    position_ids = (mask.cumsum(1) - 1).masked_fill(mask == 0, 0)
    torch.testing.assert_close(model(ROWS, attention_mask=mask, position_ids=position_ids).logits, expected)
    with pytest.raises(ValueError, match=f"position_embedding={position_embedding},"):
        model(ROWS, attention_mask=mask, position_ids=torch.arange(12)[None] // 2)


@pytest.mark.parametrize("architecture", MODELS)
def test_texts_that_share_a_beginning_are_read_as_each_alone(architecture):
    """A mask of one's own lets three last tokens follow one beginning, all at one index: right, or refused."""
    model = MODELS[architecture]()
    row, position_ids = ROWS[:1, :6], torch.tensor([[0, 1, 2, 3, 3, 3]])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[4, 3] = mask[5, 3] = mask[5, 4] = False
    if "relative" in architecture:
        with pytest.raises(ValueError, match=f"position_embedding={model.config.position_embedding},"):
            model(row, attention_mask=mask[None, None], position_ids=position_ids)
        return
    logits = model(row, attention_mask=mask[None, None], position_ids=position_ids).logits
    for last in (3, 4, 5):
        alone = model(torch.cat((row[:, :3], row[:, last : last + 1]), 1)).logits
        torch.testing.assert_close(logits[:, last], alone[:, -1], atol=1e-4, rtol=1e-4)
