"""The recurrent translators that benchmarks compare with: what they read, and what padding does to them."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
START, PAD = 1, 0


@pytest.fixture(params=[True, False], ids=["attention", "fixed vector"])
def model(request, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import recurrent_model

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "embedding_size": 8, "hidden_size": 12, "use_attention": request.param}
    special = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": 2, "decoder_start_token_id": START}
    yield recurrent_model.RecurrentTranslator(recurrent_model.RecurrentConfig(**sizes, **special)).eval()
    sys.modules.pop("recurrent_model")


def test_every_text_begins_with_the_start_token(model):
    labels = torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])
    expected = [[START, 5, 6, 7], [START, 8, 2, PAD]]
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == expected


@torch.no_grad()
def test_padding_changes_nothing_and_steps_agree_with_the_whole(model):
    source, target = torch.tensor([[3, 4, 5, 6, 7]]), torch.tensor([[START, 9, 8, 7]])
    expected = model(source, torch.ones_like(source), target).logits
    padded = torch.nn.functional.pad(source, (0, 3), value=PAD)
    batch = torch.cat((padded, torch.full_like(padded, 11)))
    mask = torch.ones_like(batch)
    mask[0, 5:] = 0
    torch.testing.assert_close(model(batch, mask, target.expand(2, -1)).logits[:1], expected)
    for length in range(1, 5):
        last = model(source, torch.ones_like(source), target[:, :length]).logits[:, -1]
        torch.testing.assert_close(last, expected[:, length - 1])


@torch.no_grad()
def test_the_next_token_depends_on_source_and_text_alone(model):
    source, target = torch.tensor([[3, 4, 5]]), torch.tensor([[START, 9, 8, 7]])
    logits = model(source, torch.ones_like(source), target).logits
    changed = target.clone()
    changed[0, 2] = 20
    other = model(source, torch.ones_like(source), changed).logits
    torch.testing.assert_close(other[:, :2], logits[:, :2])
    assert not torch.allclose(other[:, 2], logits[:, 2])
    assert not torch.allclose(model(source + 1, torch.ones_like(source), target).logits, logits)
    texts = model.generate(source, attention_mask=torch.ones_like(source), num_beams=1, max_new_tokens=4)
    step = model(source, torch.ones_like(source), texts[:, :1]).logits[:, -1].argmax(-1)
    assert texts[0, 1] == step
