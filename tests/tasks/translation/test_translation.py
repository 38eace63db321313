"""The parts of the translation task: batches by tokens, dates, tokenizers, metrics."""

import json
import math
from datetime import date, timedelta
from functools import partial

import datasets
import numpy as np
import pytest
import sacrebleu
import torch
from accelerate.data_loader import BatchSamplerShard
from babel.dates import format_date
from datasets import Dataset
from transformers import AutoTokenizer

from hf_vit.models.losses import token_loss
from hf_vit.tasks.generation import IGNORED
from hf_vit.tasks.text_metrics import PerplexityCounter, text_metrics, token_statistics
from hf_vit.tasks.translation.data import Collator, TextPairs
from hf_vit.tasks.translation.dates import LANGUAGES, load_dates, patterns
from hf_vit.tasks.translation.models import TextModelArguments, build_text_model
from hf_vit.text.tokenization import (
    TokenizerArguments,
    Tokenizers,
    fingerprint,
    load_tokenizers,
    train_tokenizer,
    train_tokenizers,
)
from hf_vit.train import build_task, parse
from hf_vit.trainer.optim import OptimizationArguments, build_optimizer, build_scheduler, parameter_groups
from hf_vit.trainer.sampler import TokenBatchSampler

PAIRS = [
    ("ein Haus", "a house"),
    ("zwei Häuser", "two houses"),
    ("", "nothing"),
    ("drei", " three "),
    ("vier", ""),
] * 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lengths_of(count):
    """Lengths of translations: the longer the source, the longer the target."""
    generator = np.random.default_rng(0)
    source = generator.integers(4, 26, count)
    return np.stack([source, source + generator.integers(-3, 4, count)], axis=1)


@pytest.mark.parametrize(("count", "max_tokens", "batches_per_step"), [(500, 200, 1), (500, 200, 3), (7, 60, 4)])
def test_batches_by_tokens_hold_every_pair_and_no_more_tokens_than_asked(count, max_tokens, batches_per_step):
    lengths = lengths_of(count)
    sampler = TokenBatchSampler(lengths, max_tokens, batches_per_step, seed=0)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append([[key.index for key in batch] for batch in sampler])
        assert list(sampler) == list(sampler)
        assert len(epochs[-1]) == len(sampler) == sampler.steps_per_epoch * batches_per_step
        assert {index for batch in epochs[-1] for index in batch} == set(range(count))
        assert all(len(batch) * lengths[batch].max(axis=0).sum() <= max_tokens for batch in epochs[-1])
    assert epochs[0] != epochs[1]
    assert sampler.samples_per_batch == pytest.approx(count / len({tuple(batch) for batch in epochs[0]}))


def test_batches_by_tokens_waste_little_on_padding():
    lengths = lengths_of(2000)
    padded = sum(
        len(b) * lengths[[k.index for k in b]].max(axis=0).sum() for b in TokenBatchSampler(lengths, 900, 1, seed=0)
    )
    assert lengths.sum() / padded > 0.9


def test_processes_share_the_batches_by_tokens():
    sampler = TokenBatchSampler(lengths_of(300), 100, 2, seed=0)
    shards = [list(BatchSamplerShard(sampler, 2, rank, even_batches=False)) for rank in range(2)]
    assert [batch for pair in zip(*shards) for batch in pair] == list(sampler)
    assert len(shards[0]) == len(shards[1])


def test_a_pair_longer_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"--max_tokens_per_batch must be >= 50.*found 49"):
        TokenBatchSampler(np.array([[3, 4], [20, 30]]), 49, 1, seed=0)


def test_no_text_stands_for_two_dates_in_whatever_language():
    days = [date(2021, month, day) for month in range(1, 13) for day in (*range(1, 13), 28)]
    read = {}
    for language in LANGUAGES.split():
        for pattern in patterns(language):
            for day in days:
                text = format_date(day, pattern, locale=language)
                assert read.setdefault(text.lower(), day) == day, (language, pattern, text)
                assert "2021" in text and str(day.day) in text
    assert len(LANGUAGES.split()) >= 20


@pytest.fixture(scope="module")
def dates():
    return load_dates()


def test_held_out_dates_are_in_no_other_split(dates):
    splits = {split: set(dataset["iso8601"]) for split, dataset in dates.items()}
    assert not splits["train"] & splits["test"] and not splits["validation"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    whole = {(date(1900, 1, 1) + timedelta(n)).isoformat() for n in range(73_049)}
    assert len(splits["train"]) == 60_000 and set.union(*splits.values()) <= whole


def test_a_trained_tokenizer_writes_any_text_and_is_the_same_each_time(tmp_path, dates):
    texts = dates["validation"]["text"][:300]
    first, second = (train_tokenizer(texts, 400) for _ in range(2))
    assert fingerprint(first) == fingerprint(second) and len(first) <= 400
    first.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*texts[:20], "Ünïcode 漢字 🙂\ttab", " two  spaces ", "a . b , c 's", "</s > <pad"]:
        ids = loaded(text)["input_ids"]
        assert ids == first(text)["input_ids"] and ids[-1] == loaded.eos_token_id
        assert loaded.decode(ids, skip_special_tokens=True) == text
    assert loaded.convert_ids_to_tokens(loaded("2021")["input_ids"])[-5:-1] == list("2021")
    assert len(loaded("января")["input_ids"]) < len("января".encode())


def test_separate_tokenizers_know_their_own_language_and_are_saved_together(tmp_path):
    arguments = TokenizerArguments(vocab_size=265, target_vocab_size=262, separate_tokenizers=True)
    made = train_tokenizers(["ein Haus ein Haus ein Haus"], ["a house a house a house"], arguments)
    assert [len(tokenizer) for tokenizer in made] == [265, 262]
    assert len(made.source("Haus").input_ids) < len(made.target("Haus").input_ids)
    made.save_pretrained(tmp_path)
    loaded = load_tokenizers(str(tmp_path))
    assert [fingerprint(each) for each in loaded] == [fingerprint(each) for each in made]
    assert made.describe()["target_tokenizer"] == {"size": 262, "fingerprint": fingerprint(loaded.target)}
    (tmp_path / "target_tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"'target_tokenizer' of .* cannot be loaded"):
        load_tokenizers(str(tmp_path))
    with pytest.raises(ValueError, match="--target_vocab_size needs --separate_tokenizers"):
        TokenizerArguments(target_vocab_size=300)
    t5 = TextModelArguments(model_type="t5", config_overrides={"d_model": 8, "num_layers": 1})
    with pytest.raises(ValueError, match="a t5 model has one vocabulary: it takes no --separate_tokenizers"):
        build_text_model(t5, made, 0.0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    marian = build_text_model(TextModelArguments(model_type="marian", config_overrides={**sizes, **heads}), made, 0.0)
    assert (marian.config.vocab_size, marian.config.decoder_vocab_size) == (265, 262)


def test_a_batch_is_padded_and_an_empty_text_has_a_token():
    tokenizer = train_tokenizer(["ein Haus", "a house"], vocab_size=259)
    rows = Dataset.from_list([{"source": s, "target": t} for s, t in PAIRS])
    pairs = TextPairs(rows, Tokenizers(tokenizer, tokenizer), max_source_length=4)
    batch = Collator(tokenizer.pad_token_id)([pairs[1], pairs[2], pairs[4]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 4)
    assert batch["attention_mask"].sum(1).tolist() == [4, 1, 4]
    assert (batch["labels"] != IGNORED).sum(1).tolist() == [len("two houses") + 1, len("nothing") + 1, 1]
    assert batch["sample_key"][:, 1].tolist() == [1, 2, 4]
    assert pairs.lengths[1].tolist() == [4, len("two houses") + 1]


def test_a_model_must_have_the_tokenizers_tokens():
    tokenizer = train_tokenizer(["ein Haus"], vocab_size=259)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    both = Tokenizers(tokenizer, tokenizer)
    model = build_text_model(TextModelArguments(config_overrides=sizes), both, 0.1)
    assert (model.config.vocab_size, model.config.eos_token_id) == (len(tokenizer), tokenizer.eos_token_id)
    assert model.config.label_smoothing == 0.1
    with pytest.raises(ValueError, match="the tokenizer has 259 tokens, the model's encoder only 258"):
        small = {**sizes, "vocab_size": 258, "encoder_vocab_size": 258}
        build_text_model(TextModelArguments(config_overrides=small), both, 0.0)
    with pytest.raises(ValueError, match="no field 'd_modle'; did you mean 'd_model'"):
        build_text_model(TextModelArguments(config_overrides={"d_modle": 8}), both, 0.0)


def test_a_checkpoint_must_have_the_tokenizers_special_tokens(tmp_path):
    tokenizer = train_tokenizer(["ein Haus"], vocab_size=259)
    both, sizes = Tokenizers(tokenizer, tokenizer), {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    build_text_model(TextModelArguments(config_overrides=sizes), both, 0.1).save_pretrained(tmp_path)
    model = build_text_model(TextModelArguments(model_name_or_path=str(tmp_path)), both, None)
    assert model.config.label_smoothing == 0.1  # its own
    tokenizer.eos_token = tokenizer.bos_token
    with pytest.raises(ValueError, match="the tokenizer's eos_token_id is 1, the model's 2: use the tokenizer that"):
        build_text_model(TextModelArguments(model_name_or_path=str(tmp_path)), both, None)


def test_models_that_do_not_shift_labels_are_refused():
    tokenizer = train_tokenizer(["ein Haus"], vocab_size=259)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    arguments = TextModelArguments(model_type="m2m_100", config_overrides={**sizes, "d_model": 16})
    with pytest.raises(ValueError, match="a m2m_100 model does not say what its decoder reads in training"):
        build_text_model(arguments, Tokenizers(tokenizer, tokenizer), 0.0)


LEARNED = [
    "--config_overrides=position_embedding=learned,max_position_embeddings=40,d_model=8,encoder_layers=1,"
    "decoder_layers=1,encoder_attention_heads=1,decoder_attention_heads=1",
    "--max_source_length=40",
    "--max_target_length=40",
    "--generation_max_length=40",
]


def test_targets_beyond_the_models_positions_are_named_before_training(tmp_path):
    pairs = [{"de": "kurz", "en": "short"}] * 4
    for split, long in (("train", "x"), ("test", "y " * 30)):
        lines = [json.dumps(row) for row in [*pairs, {"de": "lang", "en": long}]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    files = [f"--{split}_file={tmp_path / split}.jsonl" for split in ("train", "test")]
    words = ["--recipe=texts", "--vocab_size=260", "--source_lang=de", "--target_lang=en", *files, *LEARNED]
    with pytest.raises(ValueError, match=r"targets of the test split must have at most .* \(40\) tokens, found 6"):
        build_task(parse(words))
    with pytest.raises(ValueError, match=r"--max_target_length must be at most .* \(40\), found 41"):
        build_task(parse([*words, "--max_target_length=41"]))


def test_metrics_are_sacrebleus():
    predictions = ["The cat sat on the mat.", "there is a Dog in the garden", ""]
    references = ["The cat sat on the mat.", "There is a dog in our garden.", "Nothing."]
    metrics = text_metrics(predictions, references, detailed=True)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(predictions, [references]).score)
    lower = sacrebleu.corpus_bleu(predictions, [references], lowercase=True).score
    assert metrics["bleu_lowercase"] == pytest.approx(lower) and lower > metrics["bleu"]
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score)
    assert metrics["exact_match"] == pytest.approx(1 / 3)
    assert "case:lc" in metrics["signatures"]["bleu_lowercase"]


def test_perplexity_is_of_tokens_not_of_batches():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, 4, 5], [6, 0, IGNORED, IGNORED, IGNORED], [2, 2, 2, IGNORED, IGNORED]])
    statistics = {name: values.numpy() for name, values in token_statistics(logits, labels).items()}
    counter = PerplexityCounter()
    for rows in (slice(0, 1), slice(1, None)):
        counter.update(**{name: values[rows] for name, values in statistics.items()})
    expected = float(token_loss(logits, labels))
    assert counter.compute() == pytest.approx({"loss": expected, "perplexity": math.exp(expected)})


def test_inverse_sqrt_is_the_papers_schedule():
    d_model, warmup = 64, 20
    options = OptimizationArguments(
        learning_rate=(d_model * warmup) ** -0.5, lr_scheduler_type="inverse_sqrt", warmup_steps=warmup
    )
    optimizer = build_optimizer(options, 1, partial(parameter_groups, torch.nn.Linear(2, 2)))
    scheduler = build_scheduler(optimizer, options, 100)
    rates = []
    for _ in range(60):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    paper = [d_model**-0.5 * min(max(step, 1e-9) ** -0.5, step * warmup**-1.5) for step in range(60)]  # 1706.03762
    assert rates == pytest.approx(paper)
