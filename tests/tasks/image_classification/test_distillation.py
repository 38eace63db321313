"""Teachers of every kind on the student's view, and the loss they make."""

import json

import numpy as np
import pytest
import torch
from classifiers import MODELS, NAMES, VIT, save
from PIL import Image
from torch.nn import functional as F
from training_runs import TINY, finish
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    EfficientNetImageProcessor,
    MobileViTImageProcessor,
    ViTImageProcessor,
    pipeline,
)

from hf_vit import HfViTConfig, HfViTForImageClassification
from hf_vit.models.losses import distilled_loss
from hf_vit.tasks.image_classification.data import class_mapping, load_sklearn_digits
from hf_vit.tasks.image_classification.distillation import DistillationArguments, Teacher, TeacherEnsemble
from hf_vit.tasks.image_classification.losses import ClassificationLoss, LossArguments
from hf_vit.tasks.image_classification.teacher_cache import cached_logits
from hf_vit.train import build_task, parse
from hf_vit.vision.processors import normalize


@pytest.mark.parametrize("kind", MODELS)
def test_a_teacher_answers_as_it_does_to_its_own_processor(tmp_path, kind):
    path, model = save(tmp_path / kind, kind)
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    inputs = ViTImageProcessor.from_pretrained(path)(list(pixels), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(Teacher(path, NAMES)(pixels.float()), model(**inputs).logits)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ViTImageProcessor, {"do_normalize": False}),
        (ViTImageProcessor, {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [64.0] * 3}),
        (ViTImageProcessor, {"rescale_factor": 1 / 127.5}),
        (EfficientNetImageProcessor, {"do_center_crop": False}),
        (EfficientNetImageProcessor, {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}),
        (EfficientNetImageProcessor, {"rescale_offset": True, "do_normalize": False}),
        (MobileViTImageProcessor, {"do_center_crop": False}),
        (MobileViTImageProcessor, {"do_center_crop": False, "do_flip_channel_order": False}),
    ],
)
def test_a_teacher_gets_the_pixel_values_of_its_own_processor(tmp_path, kind, fields):
    path, _ = save(tmp_path)
    processor = kind(size={"height": 24, "width": 24}, **fields)
    processor.save_pretrained(path)
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    teacher, given = Teacher(path, NAMES), []
    teacher.model.register_forward_pre_hook(
        lambda module, args, options: given.append(options["pixel_values"]), with_kwargs=True
    )
    teacher(pixels.float())
    torch.testing.assert_close(given[0], processor(list(pixels), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("field", ["do_pad", "do_resize"])
def test_a_teacher_whose_processor_cannot_be_followed_is_refused(tmp_path, field):
    path, _ = save(tmp_path)
    values = {"do_pad": {"do_pad": True, "pad_size": {"height": 32, "width": 32}}, "do_resize": {"do_resize": False}}
    ViTImageProcessor(size={"height": 24, "width": 24}, **values[field]).save_pretrained(path)
    with pytest.raises(ValueError, match=field):
        Teacher(path, NAMES)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_teacher_of_another_problem_is_refused(tmp_path, problem_type):
    path, model = save(tmp_path)
    model.config.problem_type = problem_type
    model.save_pretrained(path)
    with pytest.raises(ValueError, match=f"has problem_type '{problem_type}': its classes must exclude each other"):
        Teacher(path, NAMES)


def test_a_view_of_another_size_is_resized_as_the_teachers_processor_does(tmp_path):
    path, model = save(tmp_path)
    pixels = torch.from_numpy(np.array(Image.linear_gradient("L").resize((40, 32)))).expand(1, 3, 32, 40)
    inputs = ViTImageProcessor.from_pretrained(path)(list(pixels), return_tensors="pt")
    with torch.no_grad():  # the processor rounds to whole pixel values in between
        torch.testing.assert_close(Teacher(path, NAMES)(pixels.float()), model(**inputs).logits, atol=0.02, rtol=0.02)


def test_classes_are_matched_by_name(tmp_path):
    path, model = save(tmp_path, names=["cow", "ant", "bee"])
    pixels = torch.rand(2, 3, 24, 24) * 255
    logits = Teacher(path, NAMES)(pixels)
    own = model(pixel_values=(pixels / 255 - 0.2) / 0.3).logits
    torch.testing.assert_close(logits, own[:, [1, 2, 0]])


@pytest.mark.parametrize("names", [["ant", "bee"], ["ant", "bee", "dog"], ["ant", "bee", "cow", "dog"]])
def test_other_classes_are_refused_by_name(tmp_path, names):
    path, _ = save(tmp_path, names=names)
    with pytest.raises(ValueError) as refusal:
        Teacher(path, NAMES)
    assert ("cow" in str(refusal.value)) == ("cow" not in names)
    assert ("dog" in str(refusal.value)) == ("dog" in names)


def test_classes_of_other_names_may_come_in_the_same_order(tmp_path):
    path, model = save(tmp_path, names=["Ant", "Ant", "Cow"])
    pixels = torch.rand(2, 3, 24, 24) * 255
    own = model(pixel_values=(pixels / 255 - 0.2) / 0.3).logits
    torch.testing.assert_close(Teacher(path, NAMES, class_order="index")(pixels), own)
    with pytest.raises(ValueError, match="of the same name"):
        Teacher(path, ["Ant", "Cow"])
    with pytest.raises(ValueError, match="3 classes, the data 2"):
        Teacher(path, NAMES[:2], class_order="index")


def test_an_ensemble_is_the_weighted_mean_of_probabilities(tmp_path):
    paths = [save(tmp_path / name, kind)[0] for name, kind in (("a", "vit"), ("bb", "cnn"))]
    pixels = torch.rand(4, 3, 24, 24) * 255
    ensemble = TeacherEnsemble(DistillationArguments(teacher=paths, teacher_weights=[3, 1]), NAMES)
    single = [Teacher(path, NAMES)(pixels).softmax(-1) for path in paths]
    torch.testing.assert_close(ensemble(pixels).softmax(-1), 0.75 * single[0] + 0.25 * single[1])
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_is_that_of_deit(kind, token):
    config = HfViTConfig(**VIT, image_size=8, num_labels=3, use_distillation_token=token)
    outputs = HfViTForImageClassification(config).eval()(pixel_values=torch.randn(5, 3, 8, 8))
    class_logits, student = (outputs.class_logits, outputs.distillation_logits) if token else (outputs.logits,) * 2
    targets, teacher = torch.rand(5, 3).softmax(-1), torch.randn(5, 3)  # mixed targets
    arguments = DistillationArguments(distillation_type=kind, distillation_alpha=0.3, distillation_temperature=2.0)
    heads = (outputs.logits, outputs.class_logits, outputs.distillation_logits)
    loss = distilled_loss(*heads, targets, teacher, arguments, ClassificationLoss(LossArguments()))
    true = -(targets * class_logits.log_softmax(-1)).sum(-1).mean()
    soft = (teacher / 2).softmax(-1)
    distance = 4 * (soft * (soft.log() - (student / 2).log_softmax(-1))).sum(-1).mean()
    hard = F.cross_entropy(student, teacher.argmax(-1))
    torch.testing.assert_close(loss, 0.7 * true + 0.3 * (distance if kind == "soft" else hard))


@pytest.mark.parametrize("token", [False, True])
def test_the_saved_config_tells_how_the_student_was_distilled(tmp_path, token):
    path, _ = save(tmp_path / "teacher", names=[str(digit) for digit in range(10)])
    flags = ["--image_size=8", "--train_val_split=0", "--max_train_samples=20", "--teacher", path]
    flags += ["--distillation_type=soft", "--distillation_alpha=0.7", "--distillation_temperature=2"]
    flags += [f"--config_overrides=use_class_token={str(token).lower()},use_distillation_token={str(token).lower()}"]
    task = build_task(parse(flags))
    batch = next(iter(task.train_loader(1)))
    step = task.training_step(task.model.eval(), batch)
    torch.testing.assert_close(0.3 * step.logs["label_loss"] + 0.7 * step.logs["teacher_loss"], step.loss)
    task.save_pretrained(task.model, tmp_path / "student")
    student = HfViTForImageClassification.from_pretrained(tmp_path / "student")
    inputs = normalize(batch["pixel_values"], task.processor)
    teacher_logits = task.teachers(batch["pixel_values"].float())
    own = student(pixel_values=inputs, labels=batch["labels"], teacher_logits=teacher_logits).loss
    torch.testing.assert_close(own, step.loss)


def test_the_heads_of_a_distilled_deit_of_transformers_are_told_apart(tmp_path):
    names = [str(digit) for digit in range(10)]
    path, _ = save(tmp_path / "teacher", names=names)
    config = DeiTConfig(**VIT, image_size=24, **class_mapping(names))
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "student")
    ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(tmp_path / "student")
    flags = ["--model_name_or_path", str(tmp_path / "student"), "--teacher", path, "--max_train_samples=20"]
    flags += ["--train_val_split=0", "--distillation_alpha=0"]
    task = build_task(parse(flags))
    batch = next(iter(task.train_loader(1)))
    step = task.training_step(task.model.eval(), batch)
    outputs = task.model(pixel_values=normalize(batch["pixel_values"], task.processor))
    torch.testing.assert_close(step.loss, F.cross_entropy(outputs.cls_logits, batch["labels"]))
    heads = task.evaluator("test", final=False).step(task.model, batch)["heads"]
    assert torch.equal(heads["class"]["ranked"][:, 0], outputs.cls_logits.argmax(-1))
    assert set(heads) == {"", "class", "distillation"}


def test_a_run_records_what_its_teachers_reach(tmp_path):
    path, _ = save(tmp_path / "teacher", names=[str(digit) for digit in range(10)])
    finish(*TINY, "--teacher", path, "--num_train_epochs=1", "--output_dir", tmp_path / "student")
    record = json.loads((tmp_path / "student" / "run.json").read_text())
    (teacher,) = record["teachers"]
    assert teacher["name"] == path and "revision" not in teacher  # a folder has none
    test = load_sklearn_digits()["test"]
    # The student sees 8 x 8 pixels, and the teacher what is made of them.
    classifier = pipeline("image-classification", model=path)
    answers = [answer[0]["label"] for answer in classifier([image.convert("RGB") for image in test["image"]], top_k=1)]
    right = np.mean([int(answer) == label for answer, label in zip(answers, test["label"])])
    assert teacher["accuracy"] == pytest.approx(right, abs=0.02)  # the pipeline resizes with Pillow


def test_weights_must_match_the_teachers():
    with pytest.raises(ValueError, match="2 for 1"):
        DistillationArguments(teacher=["a"], teacher_weights=[1.0, 2.0])


def test_logits_of_fixed_views_are_computed_once(tmp_path):
    views = [{"pixel_values": torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)} for _ in range(7)]
    path, _ = save(tmp_path / "teacher", "cnn")
    teachers = TeacherEnsemble(DistillationArguments(teacher=[path]), NAMES)
    expected = teachers(torch.stack([view["pixel_values"] for view in views]).float())
    options = {"batch_size": 3, "num_workers": 0}
    for _ in range(2):
        logits = cached_logits(teachers, views, tmp_path / "cache", {"train": "a"}, options)
        torch.testing.assert_close(logits, expected)
        views = [view for view in views if view is None]  # the second time there is nothing left to compute from
    with torch.no_grad():
        next(teachers.parameters()).add_(1)
    with pytest.raises(ValueError, match="non-empty"):  # another teacher, and no views to ask it about
        cached_logits(teachers, [], tmp_path / "cache", {"train": "a"}, options)


def test_a_cache_wants_views_that_never_change(tmp_path):
    path, _ = save(tmp_path / "teacher", names=[str(digit) for digit in range(10)])
    flags = ["--image_size=8", "--teacher", path, "--teacher_cache_dir", str(tmp_path / "cache")]
    with pytest.raises(ValueError, match="--affine_degrees"):
        build_task(parse(flags))
    fixed = ["--affine_degrees=0", "--affine_translate=0", "--affine_scale=0", "--max_train_samples=20"]
    flags += [*fixed, "--train_val_split=0"]
    build_task(parse([*flags, "--dry_run"]))
    assert not (tmp_path / "cache").exists()
    task = build_task(parse(flags))
    batch = next(iter(task.train_loader(1)))
    asked = task.training_step(task.model, batch).loss
    task.teacher_logits = None
    torch.testing.assert_close(asked, task.training_step(task.model, batch).loss)
