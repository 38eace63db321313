"""The translation pipeline, from a saved folder, in a process that cannot import the package."""

import copy
import json
import logging as python_logging
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration
from translators import make_tokenizer
from typer.testing import CliRunner

from hf_vit import HfTransformerConfig, HfTransformerForConditionalGeneration
from hf_vit.cli import app
from hf_vit.cli.translate import translate
from hf_vit.models.pipeline_translation import TranslationPipeline

# Hides the package, then translates, saves again, and translates from what was saved; loads body and decoder too.
PROGRAM = """
import json, sys
sys.modules["hf_vit"] = None
from transformers import AutoModel, AutoModelForCausalLM, pipeline
texts, options, folder, second_folder = json.loads(sys.argv[1])
results = []
translator = pipeline("translation", model=folder, trust_remote_code=True)
results.append(translator(texts, **options))
translator.save_pretrained(second_folder)
results.append(pipeline("translation", model=second_folder, trust_remote_code=True)(texts, **options))
translator.model.save_pretrained(second_folder + "-model")
translator.tokenizer.save_pretrained(second_folder + "-model")
results.append(pipeline("translation", model=second_folder + "-model", trust_remote_code=True)(texts, **options))
parts = [part.from_pretrained(folder, trust_remote_code=True) for part in (AutoModel, AutoModelForCausalLM)]
print(json.dumps([results, [type(part).__name__ for part in parts]]))
"""


def make_model(**options):
    torch.manual_seed(0)
    sizes = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "dropout": 0.0,
    }
    config = HfTransformerConfig(
        **{"vocab_size": 14, "norm_position": "pre", "scale_embedding": False, **sizes, **options}
    )
    return HfTransformerForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt to translate the five words, whatever their order, and its tokenizer."""
    tokenizer, model = make_tokenizer(), make_model(position_embedding="learned", max_position_embeddings=16)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=300)
    generator = torch.Generator().manual_seed(0)
    for step in range(301):
        source = torch.randint(4, 9, (32, 5 - step % 5), generator=generator)
        end = torch.full((32, 1), 2)
        loss = model(torch.cat((source, end), 1), labels=torch.cat((source + 5, end), 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    assert loss < 0.05
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in trained:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def translator(trained):
    model, tokenizer = trained
    return TranslationPipeline(model=model, tokenizer=tokenizer, device="cpu")


def test_a_process_without_the_package_translates_saves_and_translates_again(folder, tmp_path):
    texts, options = ["zwei drei ein fünf vier", "vier"], {"batch_size": 2, "max_new_tokens": 6, "num_beams": 2}
    arguments = json.dumps([texts, options, folder, str(tmp_path / "again")])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", PROGRAM, arguments]
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert output.returncode == 0, output.stderr
    results, parts = json.loads(output.stdout.splitlines()[-1])
    assert results[0] == results[1] == results[2]
    assert parts == ["HfTransformerModel", "HfTransformerForCausalLM"]
    assert results[0][0] == {"translation_text": "two three one five four"}


def test_a_second_tokenizer_given_to_the_pipeline_is_saved_with_it(trained, tmp_path):
    model, _ = trained
    both = [make_tokenizer(), make_tokenizer()]
    TranslationPipeline(model=model, tokenizer=both[0], target_tokenizer=both[1]).save_pretrained(tmp_path)
    again = TranslationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(tmp_path))
    assert again.target_tokenizer is not again.tokenizer
    assert again.target_tokenizer.get_vocab() == both[1].get_vocab()
    assert again("zwei drei ein fünf vier") == [{"translation_text": "two three one five four"}]
    again.tokenizer.save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"'target_tokenizer' of .*save_pretrained of the pipeline saves it"):
        TranslationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "alone"))
    with pytest.raises(ValueError, match="push_to_hub must be False with two tokenizers"):
        again.save_pretrained(tmp_path, push_to_hub=True)


def test_lists_batches_and_arguments_of_generate(translator):
    texts = ["drei zwei ein vier fünf", "fünf fünf vier ein zwei", "ein zwei drei vier fünf"]
    expected = ["three two one four five", "five five four one two", "one two three four five"]
    assert translator(texts[0]) == [{"translation_text": expected[0]}]
    for batch_size in (1, 2, 3):
        assert translator(texts, batch_size=batch_size) == [{"translation_text": text} for text in expected]
    assert translator(texts[0], max_new_tokens=2) == [{"translation_text": "three two"}]
    several = translator(texts[:2], num_beams=3, num_return_sequences=3)
    assert [len(results) for results in several] == [3, 3]
    assert [results[0]["translation_text"] for results in several] == expected[:2]
    assert len({result["translation_text"] for result in several[0]}) == 3


def test_the_command_translates_a_text_or_each_line(folder):
    run = partial(CliRunner().invoke, app)
    done = run(["translate", folder, "drei zwei ein vier fünf"])
    assert (done.exit_code, done.stdout) == (0, "three two one four five\n"), done.output
    for options in ([], ["--num-beams=2"], ["--num_beams=2"]):
        done = run(["translate", folder, *options], input="drei zwei ein vier fünf\n\nfünf fünf vier ein zwei\n")
        assert done.stdout == "three two one four five\n\nfive five four one two\n"
    done = run(["translate", folder], input=b"\xff\xfe\ndrei zwei ein vier f\xc3\xbcnf\n")
    assert done.stdout.endswith("\nthree two one four five\n"), done.output
    done = run(["translate", "./no/such/folder", "drei"])
    assert str(done.exception) == "model: there is no folder './no/such/folder'"


def test_the_command_translates_a_text_where_there_is_no_standard_input(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)
    translate(folder, "drei zwei ein vier fünf")
    assert capsys.readouterr().out == "three two one four five\n"


def test_the_command_translates_with_models_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["translate", str(tmp_path), "drei zwei"])
    assert done.exit_code == 0, done.output


def test_arguments_given_at_construction_hold_for_every_call(trained):
    model, tokenizer = trained
    translator = TranslationPipeline(model=model, tokenizer=tokenizer, device="cpu", max_new_tokens=1)
    assert translator("zwei drei ein fünf vier") == [{"translation_text": "two"}]


@pytest.mark.parametrize("eos", [True, False], ids=["eos", "no-eos"])
def test_an_empty_text_has_an_empty_translation_and_changes_no_other(trained, eos):
    model, _ = trained
    translator = TranslationPipeline(model=model, tokenizer=make_tokenizer(eos), device="cpu")
    text = "drei zwei ein vier fünf"
    alone = translator(text)[0]
    assert translator(["", text, "  "], batch_size=3) == [{"translation_text": ""}, alone, {"translation_text": ""}]
    assert translator("") == [{"translation_text": ""}]


def test_bad_input_is_named(trained, translator):
    _, tokenizer = trained
    with pytest.raises(ValueError, match=r"input_ids must have at most 16 tokens \(max_position_embeddings\), got 21"):
        translator("ein " * 20)
    with pytest.raises(ValueError, match="inputs must be a text or a list of texts, got int"):
        translator(3)
    with pytest.raises(ValueError, match=r"inputs must be texts of valid Unicode, got 'ein \\ud800'"):
        translator("ein \ud800")
    with pytest.raises(ValueError, match="tokenizer must have at most the model's 13 tokens, got 14"):
        TranslationPipeline(model=make_model(vocab_size=13), tokenizer=tokenizer, device="cpu")


@pytest.fixture
def warnings_given(monkeypatch):
    """Warnings of transformers' loggers and this pipeline's."""
    given = []
    monkeypatch.setattr(python_logging.Logger, "warning", lambda self, message, *args: given.append(message))
    return given


def test_a_long_text_is_cut_when_asked(trained, warnings_given):
    model, _ = trained
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 6
    translator = TranslationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    expected = [{"translation_text": "one one one one one"}]
    assert translator("ein " * 20, truncation=True) == translator("ein " * 5) == expected
    assert not warnings_given
    translator("ein " * 8)
    (warning,) = warnings_given
    assert "a text has 9 tokens, more than the model was made for (6)" in warning


def test_a_limit_of_the_call_takes_the_place_of_the_models(trained, warnings_given):
    model, tokenizer = copy.deepcopy(trained[0]), trained[1]
    model.generation_config.max_length = 3
    translator = TranslationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    assert translator("zwei drei ein fünf vier") == [{"translation_text": "two three"}]
    assert translator("zwei drei ein fünf vier", max_new_tokens=4) == [{"translation_text": "two three one five"}]
    assert translator("zwei drei ein fünf vier", max_length=2) == [{"translation_text": "two"}]
    assert not warnings_given


def test_no_texts_have_no_translations(translator):
    assert translator([]) == []
