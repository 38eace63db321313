"""The Transformer in transformers' Trainer and in PEFT."""

import peft
import pytest
import torch
from transformer_tools import VOCAB_SIZE, make_model, tokens
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from hf_vit import HfTransformerForCausalLM, HfTransformerForConditionalGeneration

TRAINERS = {
    "translator": (HfTransformerForConditionalGeneration, Trainer, TrainingArguments),
    "translator, Seq2Seq": (HfTransformerForConditionalGeneration, Seq2SeqTrainer, Seq2SeqTrainingArguments),
    "language model": (HfTransformerForCausalLM, Trainer, TrainingArguments),
}


@pytest.mark.parametrize(("model_class", "trainer_class", "arguments_class"), TRAINERS.values(), ids=TRAINERS)
def test_the_trainer_trains_and_evaluates(tmp_path, model_class, trainer_class, arguments_class):
    ids = tokens(4, 5, seed=3)
    examples = [{"input_ids": row, "labels": row} for row in ids]
    model = make_model(model_class, dropout=0.0)
    before = model(ids, labels=ids).loss
    options = {"max_steps": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    arguments = arguments_class(tmp_path, **options, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = trainer_class(model, arguments, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    assert loss < before
    assert loss == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)
    predictions = trainer.predict(examples).predictions  # a translator's come with the encoder's last states
    logits = predictions[0] if isinstance(predictions, tuple) else predictions
    torch.testing.assert_close(torch.tensor(logits), model(ids, labels=ids).logits.detach())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["qkv_proj", "embed_tokens"]},
        {"target_modules": ["qkv_proj"], "trainable_token_indices": [5]},
    ],
    ids=["LoRA", "tokens"],
)
def test_adapters_of_the_embeddings(options):
    inputs, labels = tokens(2), tokens(2, seed=2)
    expected, texts = make_model()(inputs, labels=labels).logits, make_model().generate(inputs, max_new_tokens=5)
    config = peft.LoraConfig(task_type=peft.TaskType.SEQ_2_SEQ_LM, r=2, **options)
    adapted = peft.get_peft_model(make_model(), config).eval()
    outputs = adapted(input_ids=inputs, labels=labels)
    torch.testing.assert_close(outputs.logits, expected)  # adapters begin as nothing
    assert torch.equal(adapted.generate(input_ids=inputs, max_new_tokens=5), texts)
    outputs.loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert any("embed_tokens" in name for name in trained)
    with pytest.raises(ValueError, match=r"input_ids must be in \[0, 40\)"):
        adapted(input_ids=inputs + VOCAB_SIZE, labels=labels)
