"""Losses by problem type: those of transformers' ViT with the same weights, in the model, in Trainer, in pipelines."""

import copy
import re

import pytest
import torch
import transformers
from huggingface_trainer import train
from random_weights import randomise
from torch.distributions import Bernoulli, kl_divergence
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_vit import HfViTConfig
from hf_vit.conversion.convert import convert
from hf_vit.conversion.models import from_peer
from hf_vit.models.losses import classification_loss, distillation_loss

VALUES = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
INDICES = torch.tensor([0, 3, 4, 1, 1, 2])
# problem_type, labels
PROBLEMS = {
    "single label": ("single_label_classification", INDICES),
    "single label by default": (None, INDICES),
    "multi label": ("multi_label_classification", VALUES.round()),
    "multi label, soft": ("multi_label_classification", VALUES),
    "multi label, one": ("multi_label_classification", VALUES[:, :1].round()),
    "regression": ("regression", 9 * VALUES - 4),
    "regression of one": ("regression", 9 * VALUES[:, 0] - 4),
    "regression of one, by default": (None, 9 * VALUES[:, 0] - 4),
    "regression of one, as a column": (None, 9 * VALUES[:, :1] - 4),
}
problems = pytest.mark.parametrize(("problem_type", "labels"), PROBLEMS.values(), ids=PROBLEMS)


def num_labels_of(labels):
    return 1 if labels.is_floating_point() and labels.shape[1:] != (5,) else 5


def make_peer(problem_type, labels):
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
        num_labels=num_labels_of(labels),
        problem_type=problem_type,
    )
    return randomise(transformers.ViTForImageClassification(config))


def pixels(count=6):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# --- as ViTForImageClassification ------------------------------------------------------------------------------------


@problems
def test_loss_and_gradients_are_those_of_vit(problem_type, labels):
    peer = make_peer(problem_type, labels)
    ours = from_peer(peer)
    assert ours.config.problem_type == problem_type
    before = ours.config.to_dict()
    expected, got = peer(pixels(), labels=labels), ours(pixels(), labels=labels)
    torch.testing.assert_close(got.loss, expected.loss, atol=1e-6, rtol=1e-5)
    expected.loss.backward()
    got.loss.backward()
    torch.testing.assert_close(ours.classifier.weight.grad, peer.classifier.weight.grad, atol=1e-5, rtol=1e-4)
    assert ours.config.to_dict() == before
    halved = classification_loss(got.logits.bfloat16(), labels, problem_type)
    assert halved.dtype == torch.float32


@problems
def test_two_heads_have_the_loss_of_their_mean(tiny_model, problem_type, labels):
    model = tiny_model(num_labels=num_labels_of(labels), problem_type=problem_type, use_distillation_token=True)
    outputs = model(pixels(), labels=labels)
    config = copy.deepcopy(model.config)  # transformers writes what it makes of None into it
    expected = transformers.loss.loss_utils.ForSequenceClassificationLoss(labels, outputs.logits, config)
    torch.testing.assert_close(outputs.loss, expected)


@problems
def test_trainer_takes_the_step_it_takes_with_vit(tmp_path, problem_type, labels):
    peer = make_peer(problem_type, labels)
    ours = from_peer(peer)
    examples = [{"pixel_values": image.numpy(), "labels": label.tolist()} for image, label in zip(pixels(), labels)]
    for model in (peer, ours):
        train(model, examples, tmp_path, per_device_train_batch_size=6)
    after, expected = ours.state_dict(), from_peer(peer).state_dict()
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    assert not torch.equal(ours.classifier.weight, make_peer(problem_type, labels).classifier.weight)


@problems
def test_converted_folders_answer_pipelines_as_vit_does(tmp_path, problem_type, labels):
    peer = make_peer(problem_type, labels)
    peer.save_pretrained(tmp_path / "peer")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path / "peer")
    convert(tmp_path / "peer", tmp_path / "ours")
    image = transformers.image_transforms.to_pil_image((pixels(1)[0] * 40 + 128).clamp(0, 255).byte().numpy())
    expected, got = (
        transformers.pipeline(
            "image-classification",
            model=str(tmp_path / name),
            image_processor=AutoImageProcessor.from_pretrained(tmp_path / name),
        )(image)
        for name in ("peer", "ours")
    )
    assert [answer["label"] for answer in got] == [answer["label"] for answer in expected]
    assert [answer["score"] for answer in got] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)


def test_distributions_are_cross_entropies_unless_labels_are_many():
    logits, labels = 3 * VALUES, VALUES.softmax(-1)
    expected = -(labels * logits.log_softmax(-1)).sum(-1).mean()
    for problem_type in (None, "single_label_classification"):
        torch.testing.assert_close(classification_loss(logits, labels, problem_type), expected)
        torch.testing.assert_close(classification_loss(logits, labels.bfloat16()), expected, atol=1e-2, rtol=1e-2)


# --- what fits no loss -----------------------------------------------------------------------------------------------

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    "problem_type,num_labels,labels,message",
    [
        (
            None,
            5,
            VALUES.round(),
            "labels must be distributions, of sum 1 (labels that do not exclude each other: set ",
        ),
        (None, 5, VALUES - 0.5, "labels must be distributions, in [0, 1]"),
        (None, 5, VALUES.round().long(), "labels of shape (6, 5) must be distributions, got dtype torch.int64"),
        (None, 5, VALUES[:, 0], "labels of shape (6,) must be class indices, got dtype torch.float32"),
        (SINGLE, 5, INDICES - 100, "labels must be in [0, 5), got -100"),
        (SINGLE, 5, INDICES > 2, "labels of shape (6,) must be class indices, got dtype torch.bool"),
        (SINGLE, 5, INDICES[:, None], "labels must have shape (6,) (class indices) or (6, 5) (distributions)"),
        (MULTI, 5, INDICES, "labels must have shape (6, 5) and a floating-point dtype for problem_type 'multi_label"),
        (MULTI, 5, VALUES.round().long(), "got shape (6, 5) and dtype torch.int64"),
        (MULTI, 5, 2 * VALUES, "labels must be in [0, 1] for problem_type 'multi_label_classification', got 1."),
        (MULTI, 5, VALUES * torch.nan, "labels must be in [0, 1] for problem_type 'multi_label_classification'"),
        (MULTI, 1, VALUES[:, 0], "labels must have shape (6, 1) and a floating-point dtype"),
        (
            REGRESSION,
            5,
            VALUES[:, 0],
            "labels must have shape (6, 5) and a floating-point dtype for problem_type 'regr",
        ),
        (REGRESSION, 5, INDICES, "got shape (6,) and dtype torch.int64"),
        (REGRESSION, 1, INDICES, "labels must have shape (6,) or (6, 1) and a floating-point dtype"),
        (None, 1, INDICES, "labels must have shape (6,) or (6, 1) and a floating-point dtype"),
        (None, 0, INDICES, "labels must be None for a model without classes (num_labels=0)"),
    ],
    ids=str,
)
def test_labels_that_fit_no_loss(tiny_model, problem_type, num_labels, labels, message):
    model = tiny_model(num_labels=num_labels, problem_type=problem_type)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(pixels(), labels=labels)


def test_problem_types_that_are_none(tiny_config, tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"problem_type must be .*regression.*got 'ranking'"):
        tiny_config(problem_type="ranking")
    with pytest.raises(ValueError, match=r"problem_type must be one of .*, regression or None, got 'ranking'"):
        classification_loss(VALUES, INDICES, "ranking")
    with pytest.raises(ValueError, match="single_label_classification"):
        tiny_config(num_labels=1, problem_type=SINGLE)
    tiny_model(num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="problem_type 'single_label_classification' needs num_labels of at least 2"):
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path, problem_type=SINGLE)


# --- with a teacher --------------------------------------------------------------------------------------------------

STUDENT, TEACHER = 6 * VALUES - 3, 4 * VALUES.roll(1, 0) - 2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_of_many_labels_is_the_divergence_of_each(temperature):
    teacher, student = (Bernoulli(logits=logits / temperature) for logits in (TEACHER, STUDENT))
    expected = temperature**2 * kl_divergence(teacher, student).mean()
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, "soft", temperature, MULTI), expected)
    nothing = distillation_loss(TEACHER, TEACHER, "soft", temperature, MULTI)
    torch.testing.assert_close(nothing, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_hard_distillation_of_many_labels_takes_each_decision():
    expected = -Bernoulli(logits=STUDENT).log_prob((TEACHER.sigmoid() > 0.5).float()).mean()
    torch.testing.assert_close(distillation_loss(STUDENT, TEACHER, "hard", 3.0, MULTI), expected)


def test_the_model_mixes_labels_and_teacher_for_many_labels(tiny_model):
    options = {"distillation_alpha": 0.3, "distillation_temperature": 2.0, "problem_type": MULTI}
    model = tiny_model(use_distillation_token=True, **options)
    outputs = model(pixels(), labels=VALUES.round(), teacher_logits=TEACHER)
    from_labels = -Bernoulli(logits=outputs.class_logits).log_prob(VALUES.round()).mean()
    teacher, student = (Bernoulli(logits=logits / 2) for logits in (TEACHER, outputs.distillation_logits))
    expected = 0.7 * from_labels + 0.3 * 4 * kl_divergence(teacher, student).mean()
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize(("problem_type", "num_labels"), [(REGRESSION, 5), (REGRESSION, 1), (None, 1)])
def test_regressions_have_no_teachers(tiny_model, problem_type, num_labels):
    model = tiny_model(num_labels=num_labels, problem_type=problem_type)
    with pytest.raises(ValueError, match=f"for distillation, got 'regression' with num_labels {num_labels}"):
        model(pixels(), labels=VALUES[:, :num_labels], teacher_logits=TEACHER[:, :num_labels])


# --- under transforms of functions -----------------------------------------------------------------------------------


@problems
def test_gradients_of_each_samples_loss_by_vmap(tiny_model, problem_type, labels):
    model = tiny_model(num_labels=num_labels_of(labels), problem_type=problem_type)
    parameters = dict(model.named_parameters())

    def loss(parameters, image, label):
        return torch.func.functional_call(model, parameters, (image[None],), {"labels": label[None]}).loss

    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, pixels(), labels)
    for i, (image, label) in enumerate(zip(pixels(), labels)):
        model.zero_grad()
        model(image[None], labels=label[None]).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(by_sample[name][i], parameter.grad, atol=1e-4, rtol=1e-4)


def test_problem_type_survives_a_file(tiny_config, tmp_path):
    for problem_type in (None, SINGLE, MULTI, REGRESSION):
        tiny_config(problem_type=problem_type).save_pretrained(tmp_path)
        assert HfViTConfig.from_pretrained(tmp_path).problem_type == problem_type
