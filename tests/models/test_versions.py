"""The range of transformers is stated alike everywhere; arguments that nobody reads are refused; nothing that this
package calls is deprecated."""

import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from conftest import TINY
from transformer_tools import make_model, tokens
from transformers import Trainer, TrainingArguments

from hf_vit import HfTransformerForCausalLM, HfTransformerModel, HfViTBackbone, HfViTConfig, HfViTModel
from hf_vit.models import tested_versions
from hf_vit.models.tested_versions import TESTED_TRANSFORMERS

ROOT = Path(__file__).parents[2]
OLDEST, NEWEST = TESTED_TRANSFORMERS


def test_the_range_is_stated_alike_everywhere():
    (requirement,) = re.findall(r'"(transformers>=.*)"', (ROOT / "pyproject.toml").read_text())
    assert requirement == f"transformers>={OLDEST},<{int(OLDEST.partition('.')[0]) + 1}"
    for path in ("README.md", "benchmarks/results/versions.md"):
        text = (ROOT / path).read_text()
        assert f"{OLDEST} to {NEWEST}" in text, path
        assert set(re.findall(r"(?:transformers|Supported:) (5\.\d+) to (5\.\d+)", text)) <= {(OLDEST, NEWEST)}, path
    assert f"transformers=={OLDEST}.*" in (ROOT / ".ci/run").read_text()


def test_the_running_version_is_in_the_range():
    """So that nobody widens pyproject's range without this one."""
    assert not tested_versions.is_newer(transformers.__version__)


@pytest.fixture
def said(caplog, monkeypatch):
    """Messages of this package through its logger."""
    monkeypatch.setitem(vars(tested_versions.logger), "said", set())
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if record.name == "hf_vit"]


@pytest.mark.parametrize("version", ["5.99.0", "6.0.1", "5.100.0.dev0"])
def test_a_newer_transformers_is_told_once_in_one_line(monkeypatch, said, version):
    monkeypatch.setattr(transformers, "__version__", version)
    for _ in range(2):
        make_model()
        HfViTModel(HfViTConfig(**TINY))
    (line,) = said()
    assert "\n" not in line and f"tested with transformers {OLDEST} to {NEWEST}, this is {version}" in line


def test_the_tested_versions_are_not_told_of(said):
    make_model()
    HfViTModel(HfViTConfig(**TINY))
    assert said() == []


MODELS = {
    "classifier": lambda tiny_model: (tiny_model(), {"pixel_values": torch.randn(2, 3, 16, 16)}),
    "ViT": lambda tiny_model: (tiny_model(HfViTModel), {"pixel_values": torch.randn(2, 3, 16, 16)}),
    "backbone": lambda tiny_model: (tiny_model(HfViTBackbone), {"pixel_values": torch.randn(2, 3, 16, 16)}),
    "translator": lambda _: (make_model(), {"input_ids": tokens(), "decoder_input_ids": tokens()}),
    "body": lambda _: (make_model(HfTransformerModel), {"input_ids": tokens(), "decoder_input_ids": tokens()}),
    "encoder": lambda _: (make_model().get_encoder(), {"input_ids": tokens()}),
    "decoder": lambda _: (make_model().get_decoder(), {"input_ids": tokens()}),
    "language model": lambda _: (make_model(HfTransformerForCausalLM), {"input_ids": tokens()}),
}


@pytest.mark.parametrize("name", MODELS)
def test_arguments_that_nobody_reads_are_refused_by_name(tiny_model, name):
    model, inputs = MODELS[name](tiny_model)
    unknown = {
        "kv_states": object(),
        "ouput_attentions": True,
        "cu_seq_lens_q": torch.tensor([0, 9]),
        "is_causal": True,
    }
    for argument, value in unknown.items():
        with pytest.raises(
            TypeError, match=f"forward knows no argument '{argument}'.*{re.escape(tested_versions.tested_with())}"
        ):
            model(**inputs, **{argument: value})
    expected = model(**inputs)[0]
    first = model(**inputs, kv_states=None)[0]  # says nothing
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("name", MODELS)
def test_arguments_that_transformers_gives_to_every_model_are_taken(tiny_model, name):
    model, inputs = MODELS[name](tiny_model)
    expected = model(**inputs)
    known = {"num_items_in_batch": 4, "output_hidden_states": True, "output_attentions": True, "return_dict": True}
    outputs = model(**inputs, **known)
    torch.testing.assert_close(outputs[0], expected[0])
    assert any(key.endswith("hidden_states") and len(outputs[key]) > 1 for key in outputs)
    assert any(key.endswith("attentions") and len(outputs[key]) > 1 for key in outputs)
    assert isinstance(model(**inputs, return_dict=False), tuple)


@pytest.mark.parametrize("options", [{"kv_states": 1}, {"num_beam": 3}, {"is_causal": True}], ids=str)
def test_generate_refuses_what_nobody_reads(options):
    for model in (make_model(), make_model(HfTransformerForCausalLM)):
        with pytest.raises((TypeError, ValueError), match=next(iter(options))):
            model.generate(tokens(), max_new_tokens=3, **options)


def exercise(folder):
    """Every way into the models that a user of transformers takes."""
    translator, language_model, source = make_model(), make_model(HfTransformerForCausalLM), tokens()
    for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True}):
        translator.generate(source, max_new_tokens=4, **options)
        translator.generate(source, max_new_tokens=4, return_dict_in_generate=True, output_scores=True, **options)
        language_model.generate(source, max_new_tokens=4, **options)
    for inputs in ({"labels": source}, {"decoder_input_ids": source, "use_cache": True, "output_attentions": True}):
        translator(source, **inputs)
    translator.save_pretrained(folder / "translator")
    type(translator).from_pretrained(folder / "translator")
    examples = [{"input_ids": row, "labels": row} for row in source]
    arguments = TrainingArguments(folder, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(translator, arguments, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    trainer.predict(examples)


def test_nothing_deprecated_is_called(tmp_path, monkeypatch):
    messages = []
    for name in ("warning", "warning_once", "warning_advice"):  # the second, transformers' own, speaks once a process
        monkeypatch.setattr(logging.Logger, name, lambda self, message, *args, **_: messages.append(str(message)))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        exercise(tmp_path)
    messages += [str(each.message) for each in given]
    assert not [message for message in messages if re.search("past_key_values|`cache`|cache_params", message)]
    assert not [each for each in given if issubclass(each.category, FutureWarning) and "hf_vit" in each.filename]
