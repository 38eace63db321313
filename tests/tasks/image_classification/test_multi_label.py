"""Several labels an image: how data holds them, losses and metrics against peers, a run, its folder and its card."""

import json

import datasets
import numpy as np
import pytest
import torch
import training_runs
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from transformers import pipeline

from hf_vit import score, train
from hf_vit.predict import predict
from hf_vit.tasks.image_classification.arguments import DataArguments
from hf_vit.tasks.image_classification.data import load_labelled_images
from hf_vit.tasks.image_classification.losses import LossArguments
from hf_vit.tasks.image_classification.multi_label import MultiLabelLoss
from hf_vit.tasks.image_classification.multi_label_evaluation import best_thresholds, multi_label_metrics

MULTI_LABEL = "multi_label_classification"
NAMES = ["dark", "red", "wide"]
TARGETS = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]])


def picture(row, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 40, (8, 8, 3), dtype=np.uint8)
    for channel, has in enumerate(row):
        pixels[..., channel] += np.uint8(200 * max(has, 0))
    return PILImage.fromarray(pixels)


def saved(folder, feature, values, targets=TARGETS):
    features = Features({"image": Image(), "labels": feature})
    rows = {"image": [picture(row, number) for number, row in enumerate(targets)], "labels": values}
    Dataset.from_dict(rows, features).save_to_disk(folder)
    return folder


def load(folder, **arguments):
    given = DataArguments(dataset_name=str(folder), **{"train_val_split": 0.25, **arguments})
    return load_labelled_images(given, seed=0, is_multi_label=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def of_both(data):
    rows = np.concatenate([data.labels("train"), data.labels("validation")])
    return sorted(map(tuple, rows.tolist()))


def forms():
    names = [[NAMES[index] for index in np.flatnonzero(row)] for row in TARGETS]
    index = [np.flatnonzero(row).tolist() for row in TARGETS]
    return {
        "lists of names": (List(Value("string")), names, {}),
        "lists of classes": (List(ClassLabel(names=NAMES)), index, {}),
        "joined names": (Value("string"), ["|".join(each) for each in names], {}),
        "multi-hot": (List(Value("int64")), TARGETS.tolist(), {"class_names": NAMES}),
        "multi-hot numbers": (List(Value("float32")), TARGETS.tolist(), {"class_names": NAMES}),
    }


@pytest.mark.parametrize("form", list(forms()))
def test_every_form_gives_the_same_targets(tmp_path, form):
    feature, values, arguments = forms()[form]
    data = load(saved(tmp_path / "data", feature, values), **arguments)
    assert data.class_names == NAMES and of_both(data) == sorted(map(tuple, TARGETS.tolist()))
    counts = [split["class_counts"] for split in data.describe()["splits"].values()]
    assert np.sum(counts, axis=0).tolist() == TARGETS.sum(axis=0).tolist()


def test_a_table_with_a_column_for_each_class_and_with_joined_labels(tmp_path):
    rows, joined = ["file_name;" + ";".join(NAMES)], ["file_name,labels"]
    for number, row in enumerate(TARGETS):
        picture(row).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png;" + ";".join(map(str, row)))
        joined.append(f"{number}.png," + "|".join(NAMES[index] for index in np.flatnonzero(row)))
    (tmp_path / "hot.csv").write_text("\r\n".join(rows))
    (tmp_path / "joined.csv").write_text("\n".join(joined))
    expected = sorted(map(tuple, TARGETS.tolist()))
    assert of_both(load(tmp_path / "hot.csv", class_names=NAMES)) == of_both(load(tmp_path / "joined.csv")) == expected
    (tmp_path / "hot.csv").write_text("\n".join([*rows[:-1], "7.png;1;;-1"]))
    assert (1, -1, -1) in of_both(load(tmp_path / "hot.csv", class_names=NAMES))
    arguments = DataArguments(dataset_name=str(tmp_path / "joined.csv"))
    with pytest.raises(ValueError, match=r"holds several labels of an image, joined by \|: give --problem_type multi"):
        load_labelled_images(arguments, seed=0)


def test_what_is_no_set_of_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'labels' holds one label for each image: leave --problem_type"):
        load(saved(tmp_path / "a", ClassLabel(names=NAMES), [0, 1, 2, 0, 1, 2, 0, 1]))
    hot = List(Value("int64"))
    with pytest.raises(ValueError, match="yes or no of classes without a name: give --class_names"):
        load(saved(tmp_path / "b", hot, TARGETS.tolist()))
    with pytest.raises(ValueError, match="sample 0 of the train split has 3 entries of yes and no for 2 classes"):
        load(saved(tmp_path / "c", hot, TARGETS.tolist()), class_names=NAMES[:2])
    with pytest.raises(ValueError, match="sample 0 of the train split has 2 for a label, which can be 1, 0 or"):
        load(saved(tmp_path / "d", hot, [[2, 2, 0], *TARGETS[1:].tolist()]), class_names=NAMES)
    names = [["dark"], ["blue"]] * 4
    with pytest.raises(ValueError, match="labels without a class: blue; classes: dark, red"):
        load(saved(tmp_path / "e", List(Value("string")), names), class_names=["dark", "red"])
    with pytest.raises(ValueError, match="no image of the train split of 'f' has any label"):
        load(saved(tmp_path / "f", hot, [[0, 0, 0]] * 8), class_names=NAMES)


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, generator=generator), torch.from_numpy(TARGETS)


def loss_of(scored, weights=None, **arguments):
    return MultiLabelLoss(LossArguments(problem_type=MULTI_LABEL, **arguments), weights)(*scored).item()


def test_losses_are_torchs_torchvisions_and_the_papers(scored):
    logits, targets = scored[0], scored[1].float()
    assert loss_of(scored) == pytest.approx(F.binary_cross_entropy_with_logits(logits, targets).item())
    weights = torch.tensor([0.5, 1.0, 1.5])
    weighted = F.binary_cross_entropy_with_logits(logits, targets, weight=weights)
    assert loss_of(scored, weights.tolist()) == pytest.approx(weighted.item())
    focal = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=1.5, reduction="mean")
    assert loss_of(scored, loss_type="focal", focal_gamma=1.5) == pytest.approx(focal.item(), rel=1e-5)
    p = logits.double().sigmoid()
    shifted = (p - 0.05).clamp(min=0)  # equations 4 to 7 of arXiv 2009.14119, gamma+ = 0, gamma- = 4
    asymmetric = -(targets * p.log() + (1 - targets) * shifted**4 * (1 - shifted).log()).mean()
    assert loss_of(scored, loss_type="asymmetric") == pytest.approx(asymmetric.item(), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["bce", "focal", "asymmetric"])
def test_labels_that_are_not_known_count_nowhere(scored, loss_type):
    logits, targets = scored[0].clone().requires_grad_(), scored[1].clone()
    targets[2:, 1] = -1
    loss = MultiLabelLoss(LossArguments(problem_type=MULTI_LABEL, loss_type=loss_type))(logits, targets)
    loss.backward()
    assert (logits.grad[2:, 1] == 0).all() and (logits.grad[:2] != 0).any()
    whole = MultiLabelLoss(LossArguments(problem_type=MULTI_LABEL, loss_type=loss_type))
    parts = [whole(logits[:, [0, 2]], targets[:, [0, 2]]) * 16, whole(logits[:2, [1]], targets[:2, [1]]) * 2]
    assert loss.item() == pytest.approx((sum(parts) / 18).item(), rel=1e-5)


def test_metrics_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    targets, scores = generator.integers(0, 2, (50, 4)), generator.random((50, 4))
    thresholds = np.array([0.5, 0.3, 0.7, 0.5])
    metrics = multi_label_metrics(targets, scores, thresholds, list("abcd"))
    assert metrics["mean_average_precision"] == pytest.approx(average_precision_score(targets, scores))
    for average in ("macro", "micro"):
        assert metrics[f"f1_{average}"] == pytest.approx(f1_score(targets, scores >= thresholds, average=average))
    targets[:30, 2] = -1
    masked = multi_label_metrics(targets, scores, thresholds, list("abcd"))["per_class"]
    assert masked[2]["average_precision"] == average_precision_score(targets[30:, 2], scores[30:, 2])
    assert masked[2]["support"] == (targets[30:, 2] == 1).sum() and masked[:2] == metrics["per_class"][:2]


def test_thresholds_have_the_best_f1_of_all():
    generator = np.random.default_rng(1)
    targets, scores = generator.integers(0, 2, (40, 2)), generator.random((40, 2))
    found = best_thresholds(targets, scores)
    for index, threshold in enumerate(found):
        f1 = [f1_score(targets[:, index], scores[:, index] >= each) for each in scores[:, index]]
        assert f1_score(targets[:, index], scores[:, index] >= threshold) == pytest.approx(max(f1))
    assert best_thresholds(np.zeros((3, 1), int), np.ones((3, 1))) == [0.5]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on images whose colours say which labels they have, some of them unknown; its folder and its data's."""
    root = tmp_path_factory.mktemp("several")
    targets = np.tile(TARGETS, (20, 1))
    targets[::7, 0] = -1
    hot = saved(root / "colours", List(Value("int64")), targets.tolist(), np.tile(TARGETS, (20, 1)))
    tiny = [word for word in training_runs.TINY if not word.startswith(("--train_val", "--max_train", "--num_train"))]
    tiny = [word for word in tiny if "card_num_samples" not in word]
    arguments = ["--dataset_name", str(hot), "--class_names", *NAMES, "--train_val_split=0.3", "--num_train_epochs=4"]
    arguments += [f"--problem_type={MULTI_LABEL}", "--per_device_train_batch_size=8", "--tune_label_thresholds"]
    arguments += ["--learning_rate=0.01", "--load_best_model_at_end", "--card_num_samples=2"]
    train.main([*tiny, *arguments, f"--output_dir={root / 'run'}"])
    return root / "run", hot


def test_a_run_learns_them_and_its_card_tells(run):
    record = json.loads((run[0] / "run.json").read_text())
    metrics, config = record["result"]["metrics"], json.loads((run[0] / "config.json").read_text())
    assert metrics["mean_average_precision"] > 0.65  # half of the images have each label: by chance it is 0.5
    assert config["problem_type"] == MULTI_LABEL
    assert [row["threshold"] for row in metrics["per_class"]] == config["label_thresholds"] != [0.5] * 3
    best = max(record["epochs"], key=lambda row: row["metrics"]["mean_average_precision"])
    assert record["result"]["kept_epoch"] == best["epoch"]
    card = (run[0] / "README.md").read_text()
    assert "the mean average precision is" in card and "| Average precision |" in card


def test_pipeline_predict_and_score_give_sigmoids(run, tmp_path):
    folder, data = run
    picture(TARGETS[0]).save(tmp_path / "a.png")
    pipe = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    found = {each["label"]: each["score"] for each in pipe(str(tmp_path / "a.png"))}
    pixels = pipe.image_processor(PILImage.open(tmp_path / "a.png"), return_tensors="pt")
    with torch.inference_mode():
        expected = pipe.model(**pixels).logits.sigmoid()[0].tolist()
    assert [found[name] for name in NAMES] == pytest.approx(expected, abs=1e-6)
    row = next(predict(str(folder), [str(tmp_path / "a.png")], trust_remote_code=True))
    thresholds = dict(zip(NAMES, pipe.model.config.label_thresholds))
    given = {name for name, value in found.items() if value >= thresholds[name]}
    assert {each["label"] for each in row["predictions"]} == given
    command = ["--model_name_or_path", str(folder), "--dataset_name", str(data), "--class_names", *NAMES]
    result = score.main([*command, "--split=train", f"--output_dir={tmp_path / 'score'}", "--predictions"])["result"]
    assert result["metrics"]["mean_average_precision"] > 0.65
    first = json.loads((tmp_path / "score" / "predictions.jsonl").read_text().splitlines()[1])
    assert set(first) == {"index", "label", "prediction", "scores"} and set(first["scores"]) == set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--streaming"], "--streaming does not go with --problem_type multi_label"),
        (["--balanced_sampling"], "--balanced_sampling does not go with"),
        (["--mixup_alpha=0.2", "--train_val_split=0.3"], "mix labels, and some of these are not known"),
        (["--metric_for_best_model=accuracy"], "several labels an image is one of mean_average_precision, "),
    ],
)
def test_what_does_not_go_with_several_labels(run, tmp_path, arguments, words):
    command = ["--dataset_name", str(run[1]), "--class_names", *NAMES, f"--problem_type={MULTI_LABEL}", "--dry_run"]
    with pytest.raises(ValueError, match=words):
        train.main(["--image_size=8", *command, f"--output_dir={tmp_path}", *arguments])


def test_arguments_that_ask_for_several_labels():
    for arguments in ({"loss_type": "asymmetric"}, {"tune_label_thresholds": True}):
        with pytest.raises(ValueError, match="goes with --problem_type multi_label_classification"):
            LossArguments(**arguments)
    with pytest.raises(ValueError, match="logit_adjusted is of classes that exclude each other"):
        LossArguments(loss_type="logit_adjusted", problem_type=MULTI_LABEL)
