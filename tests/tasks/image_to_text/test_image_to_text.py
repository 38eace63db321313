"""Images to texts: what the data loader takes and counts, what is refused, and a whole run."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import training_runs
from PIL import Image
from random_weights import randomise
from sacrebleu.metrics import BLEU
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoTokenizer, ViTImageProcessor, pipeline

from hf_vit import HfViTConfig, HfViTForImageClassification, score
from hf_vit.cards import check_card, write_card
from hf_vit.config import Options
from hf_vit.fingerprint import fingerprint
from hf_vit.predict import predict, write_predictions
from hf_vit.predict import told as told_of
from hf_vit.sample_keys import SampleKey
from hf_vit.tasks.image_to_text import digit_strings
from hf_vit.tasks.image_to_text.arguments import ReaderArguments
from hf_vit.tasks.image_to_text.data import ImageTextViews, find_text_column
from hf_vit.tasks.image_to_text.measure import measure, words_of
from hf_vit.tasks.text_metrics import text_metrics
from hf_vit.train import build_task, parse
from hf_vit.vision.processors import normalize

CARDS = Path(__file__).parents[3] / "model_cards"
WEIGHTS = "model.safetensors"
NO_DROPOUT = "--decoder_overrides=d_model=16,decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=16,dropout=0.0"
TINY = [
    "--recipe=images_to_texts",
    "--image_size",
    "8",
    "24",
    "--letterbox",
    "--random_shift=1",
    "--encoder_overrides=hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=16,patch_size=4",
    "--decoder_overrides=d_model=16,decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=16",
    "--vocab_size=260",
    "--max_target_length=12",
    "--generation_max_length=8",
    "--per_device_train_batch_size=4",
    "--per_device_eval_batch_size=4",
    "--num_beams=2",
    "--card_num_samples=2",
    "--lr_scheduler_type=constant",  # which does not ask for the number of steps
]


def pictures(count, size=(30, 10)):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)) for _ in range(count)]


def save(folder, texts, images=None, **columns):
    rows = {"picture": images or pictures(len(texts)), "caption": texts, **columns}
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "caption": [datasets.Value("string")] if isinstance(texts[0], list) else datasets.Value("string"),
            **{name: datasets.Value("string") for name in columns},
        }
    )
    split = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(train=split, validation=split, test=split).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Captions of lists of different lengths, one of them empty, an empty text beside others, a text that is long."""
    texts = [["a cat", "one cat"], ["a dog"], [], ["two  ", "", "2"], ["a very long caption of one image"]] * 4
    return save(tmp_path_factory.mktemp("captions") / "data", texts)


def arguments_of(folder, *more):
    return parse([*TINY, "--dataset_name", str(folder), "--output_dir", "unused", *more])


def test_what_is_left_out_is_counted(folder):
    task = build_task(arguments_of(folder))
    assert task.data.left_out == {
        "train": {"without_text": 4, "text_too_long": 4},
        "validation": {"without_text": 4},
        "test": {"without_text": 4},
    }
    assert task.data.empty_texts == {"train": 4, "validation": 4, "test": 4}
    assert task.data.splits["train"]["texts"][:3] == [["a cat", "one cat"], ["a dog"], ["two", "2"]]
    told = task.plan_rows()
    assert "train: 4 images left out, text too long" in told["left out"]
    assert "wide images" not in told  # 3 : 1 as the canvas


def test_several_texts_take_turns_and_the_key_decides(folder):
    task = build_task(arguments_of(folder))
    views = task.train_loader(1).dataset
    seen = {tuple(views[SampleKey(epoch, 0, 0)]["labels"].tolist()) for epoch in range(12)}
    assert seen == {tuple(ids) for ids in task.labels["train"][0]} and len(seen) == 2
    first, again = (views[SampleKey(3, 0, 0)] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["pixel_values"].dtype == torch.uint8 and first["pixel_values"].shape == (3, 8, 24)


def test_a_shift_moves_every_pixel_and_fills_with_the_mean(folder):
    task = build_task(arguments_of(folder))
    views: ImageTextViews = task.train_loader(1).dataset
    pixels = torch.arange(3 * 8 * 24, dtype=torch.uint8).view(3, 8, 24)
    moved = views._shifted(pixels, 2, -3)
    assert torch.equal(moved[:, 2:, :-3], pixels[:, :-2, 3:])
    assert (moved[:, :2] == 128).all() and (moved[:, :, -3:] == 128).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--text_column_name=words"],
            "--text_column_name 'words' is not a column of texts; columns: picture, caption",
        ),
        (
            ["--max_target_length=1"],
            r"--max_target_length 1 leaves no training image; the shortest text has \d+ tokens",
        ),
        (["--image_mean", "0.5"], r"--image_mean takes one number per channel \(3\), found \[0.5\]"),
        (["--decoder_overrides=d_modle=8"], "hf_transformer has no field 'd_modle'"),
        (["--image_size", "9"], "image_size"),
        (
            ["--decoder_overrides=position_embedding=learned,max_position_embeddings=4"],
            r"must have at most the decoder's max_position_embeddings \(4\) tokens",
        ),
    ],
)
def test_bad_arguments_are_named(folder, change, message):
    with pytest.raises(ValueError, match=message):
        build_task(arguments_of(folder, *change))


def test_bad_data_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the train split of .* has no image with a text"):
        build_task(arguments_of(save(tmp_path / "empty", ["", " "])))
    several = save(tmp_path / "several", ["a", "b"], other=["c", "d"])
    assert find_text_column(datasets.load_from_disk(several)["train"], None) == "caption"
    several = datasets.load_from_disk(several).rename_column("caption", "first")
    with pytest.raises(ValueError, match=r"several columns hold texts, \['first', 'other'\]: name one"):
        find_text_column(several["train"], None)
    wide = save(tmp_path / "wide", ["a"] * 4, images=pictures(4, size=(100, 10)))
    assert build_task(arguments_of(wide)).plan_rows()["wide images"].startswith("100% of the training images")


def test_cells_without_an_image_are_counted(tmp_path):
    path = save(tmp_path / "holes", ["a", "b", "c", ""], images=[*pictures(2), None, None])
    assert build_task(arguments_of(path)).data.left_out["train"] == {"without_text": 1, "without_image": 1}


def test_a_folder_of_images_with_a_table_is_read(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number, picture in enumerate(pictures(4)):
            picture.save(tmp_path / split / f"{number}.png")
        rows = "".join(f"{number}.png,text {number}\n" for number in range(4))
        (tmp_path / split / "metadata.csv").write_text("file_name,caption\n" + rows)
    splits = build_task(arguments_of(tmp_path)).data.splits
    assert splits["test"]["texts"][:] == [[f"text {number}"] for number in range(4)]
    assert splits["train"].num_rows + splits["validation"].num_rows == 4


def test_a_tokenizer_is_taken_and_the_labels_are_smoothed(folder):
    task = build_task(
        arguments_of(folder, f"--tokenizer_name={CARDS / 'dates'}", "--label_smoothing_factor=0.2", NO_DROPOUT)
    )
    taken = AutoTokenizer.from_pretrained(CARDS / "dates")
    assert task.model.config.text_config.vocab_size == len(taken) != 260
    assert task.labels["test"][0] == [taken(text_target=text)["input_ids"] for text in ("a cat", "one cat")]
    batch = next(iter(task.train_loader(1)))
    logits = task.model(normalize(batch["pixel_values"], task.processor), labels=batch["labels"]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.2)
    torch.testing.assert_close(task.training_step(task.model, batch).loss, expected)


WITHOUT_ENCODER = [each for each in TINY if not each.startswith("--encoder_overrides")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A classifier of another size, its norm behind the pooling."""
    path, config = tmp_path_factory.mktemp("encoder"), {"hidden_size": 24, "num_hidden_layers": 2, "patch_size": 4}
    config |= {"num_attention_heads": 2, "intermediate_size": 16, "pooling": "mean", "image_size": [8, 16]}
    randomise(HfViTForImageClassification(HfViTConfig(**config))).save_pretrained(path)
    form = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.2, 0.3, 0.4]}
    ViTImageProcessor(size={"height": 8, "width": 16}, **form).save_pretrained(path)
    return path


def test_the_encoder_starts_from_a_trained_one(folder, encoder):
    """With the mean and the deviation that it was trained with, and fields of its config changed."""
    argv = [*WITHOUT_ENCODER, f"--dataset_name={folder}", "--output_dir=unused", f"--encoder_name_or_path={encoder}"]
    sizes = ["--encoder_overrides=drop_path_rate=0.1"]
    task = build_task(parse([*argv, *sizes]))
    known, model = load_file(encoder / "model.safetensors"), task.model
    loaded = {f"vit.{name}": weight for name, weight in model.encoder.state_dict().items()}
    assert loaded.keys() == {name for name in known if name.startswith("vit.")}
    moved = "vit.embeddings.position_embedding.table"
    changed = {name for name in loaded if not torch.equal(loaded[name], known[name])}
    assert all("position" in name for name in changed), moved
    assert model.config.vision_config.drop_path_rate == 0.1 and model.config.vision_config.image_shape == (8, 24)
    assert tuple(task.processor.image_mean) == (0.1, 0.2, 0.3) and tuple(task.processor.image_std) == (0.2, 0.3, 0.4)
    own = [each for each in argv if each not in ("--image_size", "8", "24")]
    task = build_task(parse([*own, "--image_std", "0.5", "0.5", "0.5"]))
    assert task.model.config.vision_config.image_shape == (8, 16) and task.processor.size == {"height": 8, "width": 16}
    assert tuple(task.processor.image_mean) == (0.1, 0.2, 0.3) and tuple(task.processor.image_std) == (0.5,) * 3
    pixels = torch.rand(2, 3, 8, 16)
    classifier = HfViTForImageClassification.from_pretrained(encoder)
    with torch.no_grad():
        expected = classifier.vit.norm_pooled(classifier.vit(pixels).last_hidden_state)
        torch.testing.assert_close(task.model.eval().encoder(pixels).last_hidden_state, expected)


def test_encoders_that_do_not_fit(folder, encoder, tmp_path):
    argv = [*WITHOUT_ENCODER, f"--dataset_name={folder}", "--output_dir=unused"]
    with pytest.raises(ValueError, match="is a hf_transformer model, not a Vision Transformer of ours"):
        build_task(parse([*argv, f"--encoder_name_or_path={CARDS / 'dates'}"]))
    bare = shutil.copytree(encoder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no image processor: give --image_mean and --image_std"):
        build_task(parse([*argv, f"--encoder_name_or_path={bare}"]))
    for layers in (1, 3):
        fields = f"--encoder_overrides=num_hidden_layers={layers}"
        with pytest.raises(ValueError, match=r"does not fit the model that --encoder_overrides describe: .*layers\."):
            build_task(parse([*argv, f"--encoder_name_or_path={encoder}", fields]))
    with pytest.raises(ValueError, match="image_size of --encoder_overrides does not go with --model_name_or_path"):
        ReaderArguments(model_name_or_path="anything", encoder_overrides=Options("image_size=16"))


def test_no_digit_is_in_two_splits(monkeypatch):
    monkeypatch.setattr(digit_strings, "NUM_EXAMPLES", {"train": 60, "validation": 10, "test": 20})
    splits, again = digit_strings.draw_digit_strings(), digit_strings.draw_digit_strings()
    used = {name: {digit for row in split["digits"] for digit in row} for name, split in splits.items()}
    assert not used["train"] & used["test"] and not used["train"] & used["validation"]
    assert not used["validation"] & used["test"]
    values = digit_strings.load_digits().target
    for name, split in splits.items():
        for row in split:
            assert row["text"] == "".join(str(values[digit]) for digit in row["digits"]) and 2 <= len(row["text"]) <= 6
            assert row["image"].size == (84, 16)
        assert split["text"][:] == again[name]["text"][:]


def test_several_references_are_scored_as_sacrebleu_scores_them():
    predictions, references = (
        ["a cat sat here", "the dog ran off"],
        [["a cat sat there", "a cat sat here"], ["dogs run"]],
    )
    found = text_metrics(predictions, references)
    expected = BLEU().corpus_score(predictions, [["a cat sat there", "dogs run"], ["a cat sat here", None]])
    assert found["bleu"] == pytest.approx(expected.score)
    assert found["exact_match"] == 0.5


def test_words_of_tokens():
    assert words_of(["a", " str", "ipe", " 1", "2"]) == [[0], [1, 2], [3], [4]]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("image_to_text") / "run"
    training_runs.finish(*TINY, "--dataset_name", folder, "--num_train_epochs=2", "--output_dir", output)
    return output


def test_a_run_leaves_records_and_samples(run):
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert {"bleu", "chrf", "exact_match", "beam2_bleu", "perplexity"} <= record["result"]["metrics"].keys()
    assert record["data"]["left_out"]["train"] == {"without_text": 4, "text_too_long": 4}
    assert len(record["result"]["samples"]) == 2 and (run / "sample_0.png").is_file()


def test_the_card_shows_what_was_read_and_where_the_model_looked(run, tmp_path, monkeypatch):
    def in_this_process(folder, facts):
        return {"files_sha256": fingerprint(folder), **measure(str(folder), facts.attended)}

    monkeypatch.setattr("hf_vit.cards.measure.measure", in_this_process)
    folder = shutil.copytree(run, tmp_path / "run")
    write_card(folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(folder) == []
    assert "pipeline_tag: image-to-text" in card
    assert all(f"]({name}.png)" in card for name in ("samples", "curves", "cross_attention"))
    assert "4 images of the train split were left out: text too long." in card
    assert "4 empty texts beside others in the test split do not count." in card
    assert "BLEU is 0 while no four words in a row are right" in card
    (attended, *_) = json.loads((folder / "run.json").read_text(encoding="utf-8"))["card"]["cross_attention"]
    assert np.shape(attended["maps"]) == (len(attended["words"]), 2, 6)
    assert np.sum(attended["maps"], axis=(1, 2)) == pytest.approx(1, abs=0.01)


def test_resuming_gives_the_same_bits(run, folder, tmp_path):
    options = [*TINY, "--dataset_name", folder, "--num_train_epochs=2", "--output_dir", tmp_path / "again"]
    training_runs.finish(*options, "--max_train_steps=4")
    training_runs.finish(*options, "--resume_from_checkpoint")
    expected, found = (load_file(each / "model.safetensors") for each in (run, tmp_path / "again"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_goes_on_from_a_model(run, folder):
    argv = [
        "--recipe=images_to_texts",
        f"--dataset_name={folder}",
        "--output_dir=unused",
        f"--model_name_or_path={run}",
    ]
    task = build_task(parse([*argv, "--max_target_length=12", "--decoder_overrides=dropout=0.3"]))
    assert task.model.decoder.layers[0].dropout.p == task.model.config.text_config.dropout == 0.3
    assert all(torch.equal(weight, task.model.state_dict()[name]) for name, weight in load_file(run / WEIGHTS).items())
    assert task.processor.size == {"height": 8, "width": 24} and task.processor.crop_mode == "border"
    with pytest.raises(SystemExit):
        parse([*argv, "--image_size", "16"])


def test_predict_gives_the_texts_of_beam_search_with_their_scores(run, tmp_path):
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.png")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    rows = list(predict(str(run), [str(tmp_path)], top_k=2, batch_size=2))
    assert [row["file"] for row in rows] == paths
    reader = pipeline("image-to-text", model=str(run), trust_remote_code=True)
    settings = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 1.0}
    for row in rows:
        pixels = reader.preprocess(Image.open(row["file"]))["pixel_values"]
        told = {"output_scores": True, "return_dict_in_generate": True}
        found = reader.model.generate(pixels, **settings, **told)
        texts = reader.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        assert [each["generated_text"] for each in row["predictions"]] == [text.strip() for text in texts]
        scores = [each["score"] for each in row["predictions"]]
        assert scores == pytest.approx(found.sequences_scores.exp().tolist(), rel=1e-3)
    first = rows[0]["predictions"][0]
    assert told_of(rows[0]).startswith(f"{paths[0]}: {first['generated_text']} ({first['score']:.3f}); ")
    lines = write_predictions(rows, tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "file,rank,generated_text,score"
    assert list(predict(str(run), paths[:1], threshold=0.99)) == [{"file": paths[0], "predictions": []}]


def test_score_gives_what_the_run_measured(run, folder, tmp_path):
    arguments = ["--model_name_or_path", str(run), "--dataset_name", str(folder), "--split", "test"]
    result = score.main([*arguments, "--output_dir", str(tmp_path / "score"), "--predictions"])
    measured = json.loads((run / "run.json").read_text(encoding="utf-8"))["result"]["metrics"]
    for name in ("loss", "bleu", "chrf", "exact_match", "beam2_chrf"):
        assert result["result"]["metrics"][name] == pytest.approx(measured[name], abs=1e-4)
    lines = (tmp_path / "score/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(16))


def test_two_ranks_learn_what_one_process_learns(folder, tmp_path):
    """Which takes their batches in turn. Each image of a split is evaluated once."""
    plain = "decoder_layers=1,decoder_attention_heads=2,decoder_ffn_dim=16,d_model=16,dropout=0.0"
    options = [*TINY, "--dataset_name", folder, "--num_train_epochs=1", f"--decoder_overrides={plain}"]
    training_runs.finish(*options, "--gradient_accumulation_steps=2", "--output_dir", tmp_path / "one")
    training_runs.finish(*options, "--output_dir", tmp_path / "two", num_processes=2)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=1e-4, msg=name)
    records = [json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8")) for name in ("one", "two")]
    assert records[0]["result"]["num_examples"] == records[1]["result"]["num_examples"] == 16
    assert records[1]["result"]["metrics"]["loss"] == pytest.approx(records[0]["result"]["metrics"]["loss"], abs=1e-5)
