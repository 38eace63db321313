"""Scores of saved models against a pipeline's own answers, and sacreBLEU's of them."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import sacrebleu
import torch
from classifiers import NAMES, save
from PIL import Image
from sacrebleu.metrics import BLEU, CHRF
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EfficientNetImageProcessor,
    MarianConfig,
    MarianMTModel,
    pipeline,
)
from translators import MARIAN, WORDS, make_tokenizer

from hf_vit import HfTransformerConfig, HfTransformerForConditionalGeneration, score
from hf_vit.models.pipeline_translation import TranslationPipeline


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(names=NAMES, count=23):
        random = np.random.default_rng(0)
        images = [Image.fromarray(random.integers(0, 256, (30, 26, 3), dtype=np.uint8)) for _ in range(count)]
        labels = [names[i] for i in random.integers(0, len(names), count)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        test = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
        datasets.DatasetDict(test=test).save_to_disk(tmp_path / "data")
        return str(tmp_path / "data"), images, labels

    return make


@pytest.mark.parametrize("kind", ["ours", "vit", "cnn", "efficientnet"])
def test_the_score_is_that_of_the_pipelines_answers(tmp_path, source, kind):
    # The data's classes stand in another order than the model's, and one of the model's is missing.
    data, images, labels = source(["cow", "ant"])
    path, _ = save(tmp_path / kind, "cnn" if kind == "efficientnet" else kind)
    if kind == "efficientnet":
        EfficientNetImageProcessor(size={"height": 24, "width": 24}, do_center_crop=False).save_pretrained(path)
    output = tmp_path / "score"
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--per_device_eval_batch_size=5"]
    score.main([*flags, "--output_dir", str(output)])
    record = json.loads((output / "score.json").read_text())
    answers = [rows[0] for rows in pipeline("image-classification", model=path, device="cpu")(images)]
    metrics = record["result"]["metrics"]
    assert record["result"]["num_examples"] == len(images)
    assert metrics["accuracy"] == np.mean([answer["label"] == label for answer, label in zip(answers, labels)])
    matrix = np.zeros((3, 3), int)
    for answer, label in zip(answers, labels):
        matrix[NAMES.index(label), NAMES.index(answer["label"])] += 1
    assert metrics["confusion_matrix"] == matrix.tolist()
    for name in ("confusion_matrix.png", "reliability.png"):
        assert Image.open(output / name).size > (100, 100)
    with pytest.raises(ValueError, match="is not empty"):
        score.main([*flags, "--output_dir", str(output)])


def test_classes_the_model_does_not_know_are_refused_by_name(tmp_path, source):
    data, _, _ = source(["ant", "dog"])
    path, _ = save(tmp_path / "model")
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")]
    with pytest.raises(ValueError, match="labels without a class: dog"):
        score.main(flags)
    with pytest.raises(ValueError, match="--split 'train' is not in the data; its splits: test"):
        score.main([*flags, "--split=train"])
    assert not (tmp_path / "score").exists()


def test_classes_of_other_names_may_come_in_the_same_order(tmp_path, source):
    data, images, labels = source(["ant", "bee", "cow"])
    path, _ = save(tmp_path / "model", "vit", names=["Ant", "Ant", "Cow"])
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")]
    with pytest.raises(ValueError, match="of the same name: --class_order index"):
        score.main(flags)
    record = score.main([*flags, "--class_order=index"])
    classifier = pipeline("image-classification", model=path, device="cpu")
    own = classifier.model(**classifier.image_processor(images, return_tensors="pt")).logits.argmax(-1)
    assert record["result"]["metrics"]["accuracy"] == np.mean([NAMES[i] == label for i, label in zip(own, labels)])
    path, _ = save(tmp_path / "other", "vit", names=["Ant", "Bee"])
    with pytest.raises(ValueError, match="the data has 3 classes, the model 2"):
        score.main(["--model_name_or_path", path, *flags[2:], "--class_order=index", "--overwrite_output_dir"])


def test_a_models_name_is_required(capsys):
    with pytest.raises(SystemExit):
        score.main(["--dataset_name=x"])
    assert "--model_name_or_path is required" in capsys.readouterr().err


def test_the_scored_images_pass_through_the_models_own_processor(tmp_path, source):
    data, images, _ = source()
    path, model = save(tmp_path / "model")
    seen = []
    model_class = type(model)
    original = model_class.forward

    def forward(self, pixel_values, **kwargs):
        seen.append(pixel_values)
        return original(self, pixel_values, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "forward", forward)
        score.main(["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")])
    own = pipeline("image-classification", model=path, device="cpu").image_processor(images, return_tensors="pt")
    assert torch.equal(torch.cat(seen), own["pixel_values"])


TRANSLATOR = {"vocab_size": 14, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "tie_word_embeddings": False}


@pytest.fixture(params=["ours", "marian"])
def translator(request, tmp_path):
    """A folder with a translator that writes at most six tokens, and the texts that it is asked for."""
    if request.param == "ours":
        model = HfTransformerForConditionalGeneration(HfTransformerConfig(**SIZES, **HEADS, **TRANSLATOR))
    else:
        model = MarianMTModel(MarianConfig(**{**MARIAN, **SIZES, **HEADS, **TRANSLATOR, "forced_eos_token_id": None}))
    generator = torch.Generator().manual_seed(0)
    for matrix in (parameter for parameter in model.parameters() if parameter.ndim > 1):
        matrix.data = 0.8 * torch.randn(matrix.shape, generator=generator)  # texts that depend on the source
    model.generation_config.update(max_length=7, num_beams=3)
    model.save_pretrained(tmp_path / "translator")
    make_tokenizer().save_pretrained(tmp_path / "translator")
    random = np.random.default_rng(0)
    languages = (WORDS[:5], WORDS[5:])
    pairs = [[" ".join(random.choice(words, random.integers(1, 12))) for words in languages] for _ in range(21)]
    pairs[4][0] = ""
    rows = [json.dumps({"de": de, "en": en}) for de, en in pairs]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "translator"), str(tmp_path / "test.jsonl"), pairs


def test_the_score_of_a_translator_is_sacrebleus_of_the_pipelines_answers(tmp_path, translator, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path, file, pairs = translator
    flags = ["--task=translation", "--model_name_or_path", path, "--test_file", file]
    flags += ["--source_lang=de", "--target_lang=en", "--per_device_eval_batch_size=4", "--predictions"]
    flags += ["--max_source_length=40"]
    record = score.main([*flags, "--num_hypotheses=2", "--output_dir", str(tmp_path / "score")])
    assert record == json.loads((tmp_path / "score" / "score.json").read_text())
    metrics, sources, references = record["result"]["metrics"], *map(list, zip(*pairs))
    assert record["result"]["num_examples"] == len(pairs)
    rows = [json.loads(line) for line in (tmp_path / "score" / "predictions.jsonl").read_text().splitlines()]
    assert [(row["index"], row["source"], row["target"]) for row in rows] == [
        (i, *pair) for i, pair in enumerate(pairs)
    ]

    model = AutoModelForSeq2SeqLM.from_pretrained(path)
    pipe = TranslationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(path), device="cpu")
    answers = {
        beams: [answer["translation_text"] for answer in pipe(sources, num_beams=beams, max_length=7)]
        for beams in (1, 3)
    }
    for beams, prefix in ((1, ""), (3, "beam3_")):
        assert [row[f"{prefix}prediction"] for row in rows] == answers[beams]
        bleu, chrf = BLEU(), CHRF()
        assert metrics[f"{prefix}bleu"] == pytest.approx(bleu.corpus_score(answers[beams], [references]).score)
        assert metrics[f"{prefix}chrf"] == pytest.approx(chrf.corpus_score(answers[beams], [references]).score)
    assert metrics["signatures"]["bleu"] == str(bleu.get_signature())
    assert metrics["signatures"]["chrf"] == str(chrf.get_signature())
    assert answers[1] != answers[3] and len(set(answers[1])) > 3 and metrics["chrf"] > 0

    groups, lengths = metrics["by_source_length"], [len(source) for source in sources]
    assert sum(group["num_examples"] for group in groups) == len(pairs) and len(groups) == 4
    for group in groups:
        low, high = group["characters"]
        members = [i for i, length in enumerate(lengths) if low <= length <= high]
        assert len(members) == group["num_examples"]
        chosen = [answers[3][i] for i in members], [[references[i] for i in members]]
        assert group["beam3_bleu"] == pytest.approx(sacrebleu.corpus_bleu(*chosen).score)
        assert group["beam3_chrf"] == pytest.approx(sacrebleu.corpus_chrf(*chosen).score)

    for row in rows:
        texts, scores = zip(*[(each["text"], each["score"]) for each in row["hypotheses"]])
        assert len(texts) == 2 and texts[0] == row["beam3_prediction"] and scores[0] >= scores[1]
    assert any(row["hypotheses"][0]["text"] != row["hypotheses"][1]["text"] for row in rows)
    inputs = pipe.tokenizer([sources[1]], return_tensors="pt", return_token_type_ids=False)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_length": 7, "output_scores": True}
    best = model.generate(**inputs, **options, return_dict_in_generate=True)
    assert [each["score"] for each in rows[1]["hypotheses"]] == pytest.approx(best.sequences_scores.tolist(), abs=1e-5)


def test_what_a_translators_score_needs_is_said(tmp_path, translator, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path, file, _ = translator
    flags = ["--task=translation", "--model_name_or_path", path, "--source_lang=de", "--target_lang=en"]
    flags += ["--output_dir", str(tmp_path / "score"), "--test_file", file, "--max_source_length=40"]
    with pytest.raises(ValueError, match=r"--num_hypotheses needs at least 2 beams.* --num_beams 3 for 4"):
        score.main([*flags, "--num_hypotheses=4"])
    with pytest.raises(ValueError, match="--split 'validation' is not in the data; its splits: test"):
        score.main([*flags, "--split=validation"])
    with pytest.raises(ValueError, match="--source_lang 'fr' is not in the test split; it has de, en"):
        score.main([*flags, "--source_lang=fr"])
    with pytest.raises(ValueError, match="--task 'translate' is unknown; did you mean 'translation'"):
        score.main(["--task=translate", *flags[1:]])


def test_the_predictions_of_a_classifier_are_the_pipelines(tmp_path, source):
    data, images, labels = source()
    path, _ = save(tmp_path / "model")
    flags = ["--model_name_or_path", path, "--dataset_name", data, "--output_dir", str(tmp_path / "score")]
    score.main([*flags, "--predictions", "--per_device_eval_batch_size=4"])
    rows = [json.loads(line) for line in (tmp_path / "score" / "predictions.jsonl").read_text().splitlines()]
    answers = [rows[0] for rows in pipeline("image-classification", model=path, device="cpu")(images)]
    assert [row["index"] for row in rows] == list(range(len(images)))
    assert [row["label"] for row in rows] == labels
    assert [row["prediction"] for row in rows] == [answer["label"] for answer in answers]
    assert [row["score"] for row in rows] == pytest.approx([answer["score"] for answer in answers], abs=1e-5)


DATA = {
    "image_classification": ["--dataset_name=sklearn_digits"],
    "translation": ["--dataset_name=dates", "--source_lang=text", "--target_lang=iso8601"],
}


@pytest.mark.parametrize("task", DATA)
def test_a_folder_of_an_old_run_says_its_task(tmp_path, monkeypatch, task):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = Path(__file__).parent / "fixtures" / "version_0_1_0" / task
    flags = ["--model_name_or_path", str(folder), "--max_eval_samples=30", "--output_dir", str(tmp_path / "score")]
    record = score.main([*flags, *DATA[task]])
    assert (record["task"], record["result"]["num_examples"]) == (task, 30)
    trained = json.loads((folder / "run.json").read_text())["result"]["metrics"]
    assert set(trained) <= set(record["result"]["metrics"])
    assert record["result"]["metrics"]["loss"] == pytest.approx(trained["loss"], abs=0.2)  # of other samples
