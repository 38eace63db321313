"""Pairs of texts from every source, and what is refused."""

import csv
import gzip
import io
import json

import datasets
import pytest
from datasets import Dataset, DatasetDict

from hf_vit.tasks.translation.arguments import ScoredTextArguments, TextDataArguments
from hf_vit.tasks.translation.data import load_parallel_split, load_parallel_texts

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


def test_a_corpus_is_cleaned_where_asked_and_what_is_left_out_is_counted(tmp_path):
    pairs = [("ein Haus", "a house"), ("ein Haus", "a house"), ("ein Haus", "the house"), ("ja", "yes, by all means")]
    pairs += [("", "nothing"), ("abcd", "ab"), ("abcde", "ab")]
    for side, lines in zip(("train.de", "train.en"), zip(*pairs)):
        (tmp_path / side).write_text("".join(f"{line}\n" for line in lines))
    files = {"train_file": [str(tmp_path / "train.de"), str(tmp_path / "train.en")], "train_val_split": 0.5}
    arguments = {**files, "source_lang": "de", "target_lang": "en"}
    plain = load_parallel_texts(TextDataArguments(**arguments), 0)
    assert plain.left_out == {"empty": 1} and sum(map(len, plain.splits.values())) == 6
    cleaned = load_parallel_texts(TextDataArguments(**arguments, max_length_ratio=2, drop_duplicates=True), 0)
    assert cleaned.left_out == {"empty": 1, "length_ratio": 2, "duplicates": 1}
    kept = sorted(pair for split in cleaned.splits.values() for pair in zip(split["source"], split["target"]))
    assert kept == sorted([pairs[0], pairs[2], pairs[5]])
    with pytest.raises(ValueError, match=r"--max_length_ratio must be >= 1, found 0\.5"):
        TextDataArguments(**arguments, max_length_ratio=0.5)
