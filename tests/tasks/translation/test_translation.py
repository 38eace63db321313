"""The parts of the translation task: batches by tokens, dates, tokenizers, data from every source, metrics."""

import csv
import gzip
import io
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
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from hf_vit.models.losses import token_loss
from hf_vit.tasks.translation.arguments import ScoredTextArguments, TextDataArguments
from hf_vit.tasks.translation.data import IGNORED, Collator, TextPairs, load_parallel_split, load_parallel_texts
from hf_vit.tasks.translation.dates import LANGUAGES, load_dates, patterns
from hf_vit.tasks.translation.metrics import PerplexityCounter, text_metrics, token_statistics
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
WHOLE = [("ein Haus", "a house"), ("zwei Häuser", "two houses"), ("drei", "three")] * 4


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


def write_source(folder, form):
    """PAIRS as a source of that form; returns the arguments that name it."""
    folder.mkdir()
    sources, targets = zip(*PAIRS)
    nested = [{"translation": {"de": de, "en": en}} for de, en in PAIRS]
    flat = [{"de": de or None, "en": en, "id": i} for i, (de, en) in enumerate(PAIRS)]
    if form == "parallel files":
        (folder / "train.de").write_text("".join(f"{text}\r\n" for text in sources), newline="", encoding="utf-8")
        (folder / "train.en").write_text("".join(f"{text}\n" for text in targets), encoding="utf-8")
        return {"train_file": [str(folder / "train.de"), str(folder / "train.en")]}
    if form == "parallel files by gzip, with byte-order marks":
        for name, texts in (("train.de.gz", sources), ("train.en.gz", targets)):
            content = "".join(f"{text}\n" for text in texts).encode("utf-8-sig")
            (folder / name).write_bytes(gzip.compress(content))
        return {"train_file": [str(folder / "train.de.gz"), str(folder / "train.en.gz")]}
    if form in ("CSV", "TSV", "TSV by gzip"):
        separator = "," if form == "CSV" else "\t"
        table = io.StringIO(newline="")
        if form == "CSV":
            csv.writer(table).writerows([("de", "id", "en"), *((de, i, en) for i, (de, en) in enumerate(PAIRS))])
        else:
            rows = [("de", "id", "en"), *((de, "1", en) for de, en in PAIRS)]
            table.write("".join(separator.join(row) + "\n" for row in rows))
        content, name = table.getvalue().encode("utf-8-sig"), f"train.{form[:3].lower()}"
        if form.endswith("gzip"):
            content, name = gzip.compress(content), name + ".gz"
        (folder / name).write_bytes(content)
        return {"train_file": [str(folder / name)]}
    if form == "JSON lines":
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, flat)))
        return {"train_file": [str(folder / "train.jsonl")]}
    if form == "uneven JSON lines":
        uneven = [{"translation": {"en": en, "de": de} if de else {"en": en}} for de, en in PAIRS]
        uneven += [{"translation": None}, {"id": 7}]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, uneven)))
        return {"train_file": [str(folder / "train.jsonl")]}
    features = datasets.Features({"translation": datasets.Translation(["de", "en"])})
    dataset = Dataset.from_list(nested, features)
    if form == "saved to disk":
        DatasetDict(train=dataset).save_to_disk(folder)
    else:
        dataset.to_parquet(folder / "train.parquet")
    return {"dataset_name": str(folder)}


FORMS = ["parallel files", "parallel files by gzip, with byte-order marks", "CSV", "TSV", "TSV by gzip"]
FORMS += ["JSON lines", "uneven JSON lines", "saved to disk", "parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_every_source_gives_the_same_pairs_without_the_empty_ones(tmp_path, form):
    arguments = write_source(tmp_path / "source", form)
    data = load_parallel_texts(
        TextDataArguments(**arguments, source_lang="de", target_lang="en", train_val_split=0.25), seed=0
    )
    rows = [tuple(row.values()) for split in ("train", "validation") for row in data.splits[split]]
    assert sorted(rows) == sorted(WHOLE)
    assert [len(data.splits[split]) for split in ("train", "validation")] == [9, 3]
    assert data.left_out == {"empty": 10 if form.startswith("uneven") else 8}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source_lang": "xx"}, "--source_lang 'xx' is not in the train split; it has de, en"),
        ({"target_lang": "id"}, "must name columns of text"),
        ({"target_lang": "de"}, "are both 'de'"),
        ({"target_lang": None}, "--target_lang is needed"),
        ({"train_file": ["a", "b", "c"]}, "one file of JSON lines, CSV or TSV, or two of text, found 3"),
        ({"train_file": ["no.jsonl"]}, "no such file: 'no.jsonl'"),
        ({"train_file": None, "dataset_name": "dates", "test_split_name": "tst"}, "'tst' is not one of test"),
        ({"train_file": None, "dataset_name": "dates", "test_file": ["a"]}, "--test_file goes with --train_file"),
        ({"dataset_name": "dates"}, "either --dataset_name or --train_file"),
        ({"train_val_split": 0}, "nothing to evaluate"),
    ],
)
def test_bad_data_arguments_are_named(tmp_path, arguments, words):
    good = write_source(tmp_path / "source", "JSON lines")
    with pytest.raises(ValueError, match=words):
        load_parallel_texts(TextDataArguments(**{"source_lang": "de", "target_lang": "en", **good, **arguments}), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"train.jsonl' is empty"),
        ("no JSON", r"train.jsonl' is not a file of JSON lines: .*JSON"),
        ('{"translation": ["ein Hund", "a dog"]}', "--source_lang 'de' is not in the train split; it has translation"),
        (
            '{"translation": {"de": "ein Hund", "en": "a dog"}}\n{"translation": [1]}',
            r"translation in the train split must hold texts by language, found \[1\]",
        ),
        ('{"translation": "a dog"}', "--source_lang 'de' is not in the train split; it has translation"),
        ('{"de": "ein Hund", "en": "a dog"}', "1 training sample cannot be parted"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, text, words):
    (tmp_path / "train.jsonl").write_text(text)
    file = [str(tmp_path / "train.jsonl")]
    with pytest.raises(ValueError, match=words):
        load_parallel_texts(TextDataArguments(train_file=file, source_lang="de", target_lang="en"), 0)


def test_a_column_may_be_named_translation(tmp_path):
    rows = [{"de": de, "translation": en} for de, en in WHOLE]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = TextDataArguments(
        train_file=[str(tmp_path / "train.jsonl")], source_lang="de", target_lang="translation"
    )
    data = load_parallel_texts(arguments, 0)
    assert sorted(row["target"] for split in data.splits.values() for row in split) == sorted(en for _, en in WHOLE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"one\rtwo\rthree\r", r"train.de' has a carriage return within line 1: end lines by line feeds"),
        (b"\xff\xfeo\x00", r"train.de' is not a text file in UTF-8"),
    ],
)
def test_texts_that_are_no_lines_in_utf_8_are_refused(tmp_path, content, words):
    files = write_source(tmp_path / "source", "parallel files")["train_file"]
    (tmp_path / "source" / "train.de").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_parallel_texts(TextDataArguments(train_file=files, source_lang="de", target_lang="en"), 0)


def test_one_pair_cannot_be_parted(tmp_path):
    for name in ("de", "en"):
        (tmp_path / f"train.{name}").write_text("eins\n")
    files = [str(tmp_path / "train.de"), str(tmp_path / "train.en")]
    with pytest.raises(ValueError, match="1 training sample cannot be parted; give data for validation"):
        load_parallel_texts(TextDataArguments(train_file=files, source_lang="de", target_lang="en"), 0)


def test_numbers_in_a_table_are_texts(tmp_path):
    (tmp_path / "train.csv").write_text("de,en\n1,01\nNA,null\n2,3\n")
    arguments = TextDataArguments(
        train_file=[str(tmp_path / "train.csv")], source_lang="de", target_lang="en", train_val_split=0.5
    )
    data = load_parallel_texts(arguments, 0)
    rows = sorted(tuple(row.values()) for split in data.splits.values() for row in split)
    assert rows == [("1", "01"), ("2", "3"), ("NA", "null")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("de,en\na,b\nc,d,e\n", r"has 3 fields in line 3 and 2 in its first: 'c,d,e'"),
        ("de,en\na\n", r"has 1 field in line 2 and 2 in its first: 'a'"),
        ("ein Hund,a dog\n", r"first line must name the columns, 'de' and 'en' among them, .* it is 'ein Hund,a dog'"),
        ("de;en\na;b\n", r"it is 'de;en'"),
        ("de,en,de\na,b,c\n", r"each once; it is 'de,en,de'"),
        ('de,en\n"a,b\n', r"is not a table in UTF-8: unexpected end of data"),
        ("", r"it is ''"),
    ],
)
def test_tables_whose_fields_would_be_taken_for_others_are_refused(tmp_path, content, words):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        load_parallel_texts(
            TextDataArguments(train_file=[str(tmp_path / "train.csv")], source_lang="de", target_lang="en"), 0
        )


def test_two_tables_are_no_parallel_texts(tmp_path):
    for name in ("de.csv", "en.csv"):
        (tmp_path / name).write_text("de,en\na,b\n")
    files = [str(tmp_path / "de.csv"), str(tmp_path / "en.csv")]
    with pytest.raises(ValueError, match=r"de.csv' is a file of pairs, and takes no second file beside it"):
        load_parallel_texts(TextDataArguments(train_file=files, source_lang="de", target_lang="en"), 0)


@pytest.mark.parametrize("form", ["JSON lines", "saved to disk"])
def test_texts_that_are_not_divided_are_the_split_that_is_scored(tmp_path, form):
    folder = tmp_path / "captions"
    rows = [{"de": de, "en": en} for de, en in WHOLE]
    if form == "saved to disk":
        Dataset.from_list(rows).save_to_disk(folder)
    else:
        folder.mkdir()
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_parallel_split(
        ScoredTextArguments(dataset_name=str(folder), source_lang="de", target_lang="en"), "test"
    )
    assert data.name == "captions" and {split: len(rows) for split, rows in data.splits.items()} == {
        "test": len(WHOLE)
    }


def test_texts_of_another_split_are_not_scored_in_its_place(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"de": "ein Hund", "en": "a dog"}')
    with pytest.raises(ValueError, match="--split 'test' is not in the data; its splits: train"):
        load_parallel_split(ScoredTextArguments(dataset_name=str(folder), source_lang="de", target_lang="en"), "test")


def test_the_data_bears_the_name_of_the_files_or_of_their_folder(tmp_path):
    files = write_source(tmp_path / "captions", "parallel files")["train_file"]
    assert load_parallel_texts(TextDataArguments(train_file=files, source_lang="de", target_lang="en"), 0).name == (
        "captions"
    )


def test_parallel_files_of_different_length_are_refused(tmp_path):
    (source, target) = write_source(tmp_path / "source", "parallel files")["train_file"]
    with open(target, "a") as file:
        file.write("one more\nand \N{LINE SEPARATOR} a last")
    with pytest.raises(ValueError, match=r"as many lines.*train.de' 20 lines.*train.en' 22 lines"):
        load_parallel_texts(TextDataArguments(train_file=[source, target], source_lang="de", target_lang="en"), 0)


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
