"""Whole runs of the translation task: what they leave serves translations anywhere, and resuming changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import training_runs
from safetensors.torch import load_file

from hf_vit.cards import check_card
from hf_vit.isolated.fresh_process import fresh_process

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
# Every part that resuming must restore: order, dropout, the mean of the last epochs; a schedule without an end.
TINY = [
    "--recipe=dates",
    "--vocab_size=300",
    "--max_train_samples=120",
    "--max_eval_samples=20",
    "--max_tokens_per_batch=500",
    "--num_train_epochs=3",
    "--num_averaged_epochs=2",
    "--num_beams=2",
    "--lr_scheduler_type=inverse_sqrt",
    "--warmup_steps=5",
    "--label_smoothing_factor=0.1",
    "--config_overrides=d_model=16,encoder_layers=1,decoder_layers=1,encoder_ffn_dim=16,decoder_ffn_dim=16,dropout=0.1",
]
# The first run is cut within its second epoch; both runs share the cost of starting Python.
CUT_AND_RESUME = """
import json
import pathlib
import sys
import hf_vit.trainer.run_folder
from hf_vit.train import main
hf_vit.trainer.run_folder.write_card = lambda folder: None  # as the uninterrupted run has shown
argv = sys.argv[1:]
main([*argv, "--max_train_steps={cut}"])
record = json.loads((pathlib.Path(argv[-1]) / "run.json").read_text())
(pathlib.Path(argv[-1]) / "run.json").write_text(json.dumps({{**record, "peak_memory_bytes": 10**13}}))
main([*argv, "--resume_from_checkpoint", "latest"])
"""


def train(folder, *arguments):
    """Trains into the folder as a user does; what is printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "training/train.py", *TINY, *arguments]
    done = subprocess.run(
        [*command, "--output_dir", str(folder)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def translations_elsewhere(lines, texts):
    """Translations of the texts by a process without the package, having executed `lines`."""
    with fresh_process(HF_HUB_OFFLINE="1") as stranger:
        answers = stranger.run(f"{lines}\nresult = translator(texts, max_new_tokens=16)", texts=texts)
    return [answer["translation_text"] for answer in answers]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "dates"
    return folder, train(folder)


def test_the_records_and_the_card_tell_the_run(finished):
    folder, log = finished
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished" and len(record["epochs"]) == 3
    losses = [row["train_loss"] for row in record["epochs"]]
    assert losses == sorted(losses, reverse=True)
    metrics = record["result"]["metrics"]
    assert {"loss", "perplexity", "bleu", "chrf", "exact_match", "bleu_lowercase", "beam2_bleu"} <= set(metrics)
    assert record["result"]["num_examples"] == 20
    card = (folder / "README.md").read_text()
    assert metrics["signatures"]["bleu"].replace("|", "\\|") in card
    assert record["result"]["samples"][0]["source"] in card
    assert "pipeline_tag: translation" in card and "curves.png" in card and check_card(folder) == []
    samples = record["result"]["samples"]  # which the usage example's way of decoding made, and it prints the first
    assert {sample["num_beams"] for sample in samples} == {2} and "by 2 beams, as in the usage above." in card
    assert set(record["card"]["outputs"].values()) == {samples[0]["prediction"] + "\n"}
    attended = record["card"]["cross_attention"]
    assert len(attended) == 2 and "cross_attention.png" in card
    for row in attended:
        shares = np.array(row["map"])
        assert shares.shape == (len(row["target"]), len(row["source"]))
        np.testing.assert_allclose(shares.sum(1), 1, atol=0.02)  # recorded to three digits
    assert log.strip().splitlines()[-1].startswith("translator = pipeline(")


def test_the_folder_translates_where_the_package_is_not(finished, tmp_path):
    folder, log = finished
    samples = json.loads((folder / "run.json").read_text())["result"]["samples"]
    lines = "\n".join(log.strip().splitlines()[-2:])
    answers = translations_elsewhere(lines, [sample["source"] for sample in samples])
    assert answers == [sample["prediction"] for sample in samples]


def test_the_saved_model_generates_as_it_was_measured(finished):
    folder, _ = finished
    config = json.loads((folder / "generation_config.json").read_text())
    assert (config["num_beams"], config["max_length"]) == (2, 17)
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_pairs_of_ones_own_train_and_fine_tune(tmp_path):
    pairs = [("eins", "one"), ("zwei", "two"), ("drei", "three"), ("vier", "four")] * 6
    for language, texts in zip(("de", "en"), zip(*pairs)):
        (tmp_path / f"train.{language}").write_text("\n".join(texts))
    files = ["--recipe=texts", "--train_file", tmp_path / "train.de", tmp_path / "train.en"]
    files += [
        "--source_lang=de",
        "--target_lang=en",
        "--vocab_size=270",
        "--num_train_epochs=1",
        "--card_num_samples=1",
    ]
    training_runs.finish(*files, TINY[-1], "--num_averaged_epochs=none", "--output_dir", tmp_path / "first")
    defaults = tmp_path / "first" / "generation_config.json"
    more = {"num_return_sequences": 2, "return_dict_in_generate": True}  # of no use to the evaluation
    defaults.write_text(json.dumps({**json.loads(defaults.read_text()), **more}))
    start = ["--model_name_or_path", tmp_path / "first", "--num_averaged_epochs=none"]
    training_runs.finish(*files, *start, "--num_beams=none", "--output_dir", tmp_path / "second")
    for folder in ("first", "second"):
        config = json.loads((tmp_path / folder / "generation_config.json").read_text())
        assert (config["num_beams"], config["max_length"]) == (4, 129)
        assert json.loads((tmp_path / folder / "run.json").read_text())["result"]["metrics"]["beam4_bleu"] >= 0


def test_separate_tokenizers_travel_with_the_model(tmp_path):
    folder = tmp_path / "run"
    sizes = ["--vocab_size=320", "--target_vocab_size=270", "--num_train_epochs=1", "--num_averaged_epochs=none"]
    log = train(folder, "--separate_tokenizers", *sizes)
    record = json.loads((folder / "run.json").read_text())
    assert record["model"]["tokenizer"]["size"] == 320 and record["model"]["target_tokenizer"]["size"] < 320
    config = json.loads((folder / "config.json").read_text())
    assert (config["encoder_vocab_size"], config["vocab_size"]) == (320, record["model"]["target_tokenizer"]["size"])
    card = (folder / "README.md").read_text()  # whose programs were executed
    assert "print(target_tokenizer.decode(output_ids[0]" in card and check_card(folder) == []
    samples = record["result"]["samples"]
    again = f"translator.save_pretrained({str(tmp_path / 'again')!r})\n" + log.strip().splitlines()[-1]
    lines = "\n".join([*log.strip().splitlines()[-2:], again.replace(str(folder), str(tmp_path / "again"))])
    answers = translations_elsewhere(lines, [sample["source"] for sample in samples])
    assert answers == [sample["prediction"] for sample in samples]


def test_a_run_that_was_cut_ends_with_the_same_weights(finished, tmp_path):
    record = json.loads((finished[0] / "run.json").read_text())
    steps = record["epochs"][0]["step"]
    assert steps > 2
    script = CUT_AND_RESUME.format(cut=steps + steps // 2)
    done = subprocess.run(
        [sys.executable, "-c", script, *TINY, "--output_dir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**ENVIRONMENT, "ACCELERATE_MIXED_PRECISION": "no"},  # as launched: bits need the same threads
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    resumed = json.loads((tmp_path / "run" / "run.json").read_text())
    assert resumed["epochs"][-1]["metrics"] == record["epochs"][-1]["metrics"]
    assert resumed["peak_memory_bytes"] == 10**13  # of the part before
    expected, found = (load_file(path / "model.safetensors") for path in (finished[0], tmp_path / "run"))
    assert all((expected[name] == found[name]).all() for name in expected)
