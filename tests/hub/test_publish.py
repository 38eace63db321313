"""Publishing, against a Hub of the loopback that speaks the real protocol."""

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time

import pytest
import torch
from hub_server.client import LOGITS, STRANGER, Client, ClientError, push, run_snippets
from hub_server.messages import Fault
from hub_server.saved_run import digests, save_run
from hub_server.server import Hub, User
from PIL import Image
from transformers import ViTImageProcessor

from hf_vit import HfViTForImageClassification
from hf_vit.cards import write_card
from hf_vit.hub.doctor import published_files

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="the loopback Hub needs git")
REPO = "alice/digits"
TOKENS = {name: f"hf_{name:x<34}" for name in ("alice", "bob", "reader")}
TRAIN = "sys.path.insert(0, root)\nfrom hf_vit.train import main\nmain(argv)"
PYTHONS = [
    pytest.param(sys.executable, id="newest"),
    pytest.param(
        os.environ.get("HF_VIT_OLDEST_PYTHON"),
        id="oldest",
        marks=pytest.mark.skipif("HF_VIT_OLDEST_PYTHON" not in os.environ, reason="HF_VIT_OLDEST_PYTHON is not set"),
    ),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    users = [User("alice", organisations=("acme",)), User("bob"), User("alice", can_write=False)]
    hub = Hub(tmp_path_factory.mktemp("hub"), dict(zip(TOKENS.values(), users)))
    yield hub
    hub.stop()
    assert hub.unknown == [], "the clients ask for more than this Hub can answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a run that goes to `REPO`; its card's snippets were executed."""
    folder = save_run(tmp_path_factory.mktemp("runs") / "digits", REPO)
    write_card(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """The same model without the records of its run, whose card may go anywhere."""
    plain = shutil.copytree(folder, tmp_path_factory.mktemp("plain") / "digits")
    (plain / "run.json").unlink()
    return plain


@pytest.fixture(scope="module")
def author(hub, tmp_path_factory):
    """Alice's process, which has the package."""
    with Client(tmp_path_factory.mktemp("author"), hub.url, HF_TOKEN=TOKENS["alice"]) as client:
        client.run(
            """
            import os, shlex, sys, time
            from pathlib import Path
            from hf_vit import cli
            from hf_vit.hub import publish as hub
            from hf_vit.hub.background import BackgroundPush
            time.sleep = lambda seconds: None  # between repetitions, ours and those of huggingface_hub
            """
        )
        yield client


@pytest.fixture(scope="module")
def published(hub, author, folder):
    """The hash of the commit that a first push, which the Hub did not survive, led to in the end."""
    before = digests(folder)
    hub.faults.append(Fault("POST", "/commit/", kills=True))
    with pytest.raises(ClientError, match="was not reached") as error:
        push(author, folder, REPO, tag="v1", collection="Digits")
    hub.down = False
    git = hub.repositories[REPO].git
    assert list(git.entries(git.resolve("main"))) == [".gitattributes"], "half of a commit is visible"
    command = re.search(r"^ +(hf-vit .+)$", str(error.value), re.MULTILINE).group(1)
    with pytest.raises(ClientError, match=r"SystemExit: (0|None)?$"):
        author.run("sys.argv = shlex.split(command)\ncli.main()", command=command)
    assert digests(folder) == before
    return git.resolve("main")


def test_push_is_one_whole_commit(hub, folder, published):
    repository = hub.repositories[REPO]
    entries = repository.git.entries(published)
    assert repository.git.log() == ["Upload model", "initial commit"]
    code = {path.name for path in folder.glob("*.py")}
    figures = {path.name for path in folder.glob("*.png")}
    described = {"config.json", "preprocessor_config.json", "README.md", "run.json"}
    assert set(entries) == {".gitattributes", "model.safetensors"} | code | figures | described
    assert "modeling_hf_vit.py" in code and {"sample_0.png", "attention.png"} <= figures
    weights = entries["model.safetensors"]
    assert weights.lfs_oid == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert repository.git.refs("tags") == {"v1": published}
    (collection,) = hub.collections.values()
    assert (collection["title"], [item["id"] for item in collection["items"]]) == ("Digits", [REPO])
    run = json.loads(repository.git.blob(entries["run.json"].oid))
    assert run["arguments"]["output_dir"] == "digits" and run["data"]["name"] == "digits"
    assert b"/home" not in repository.git.blob(entries["run.json"].oid)
    assert repository.git.blob(entries["README.md"].oid) == (folder / "README.md").read_bytes()


@pytest.fixture(scope="module", params=PYTHONS)
def stranger(request, hub, published, tmp_path_factory):
    """Bob's process, without the package; it has downloaded nothing yet."""
    with Client(
        tmp_path_factory.mktemp("stranger"), hub.url, request.param, ["hf_vit"], HF_TOKEN=TOKENS["bob"]
    ) as client:
        client.python = request.param
        client.run(STRANGER, repo_id=REPO)
        yield client


@pytest.fixture(scope="module")
def logits(folder):
    model = HfViTForImageClassification.from_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    return model(**processor(Image.open(folder / "sample_0.png"), return_tensors="pt")).logits[0]


def test_every_auto_class_loads_by_name(stranger, logits):
    heads = ["AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoBackbone"]
    classes = stranger.run(
        """
        loaded = [getattr(transformers, name).from_pretrained(repo_id, **options) for name in names]
        result = [type(each).__name__ for each in loaded]
        """,
        names=heads,
    )
    assert classes == ["HfViTConfig", "HfViTModel", "HfViTForImageClassification", "HfViTBackbone"]
    torch.testing.assert_close(torch.tensor(stranger.run(LOGITS, revision={})), logits)


def test_a_revision_is_what_it_was(stranger, author, hub, plain, published, logits, tmp_path):
    changed = shutil.copytree(plain, tmp_path / "digits")
    model = HfViTForImageClassification.from_pretrained(changed)
    torch.nn.init.ones_(model.classifier.bias[:5])
    model.save_pretrained(changed)
    later = push(author, changed, REPO, revision="later")
    assert hub.repositories[REPO].git.resolve("main") == published
    for revision in ("v1", published):
        pinned = stranger.run(LOGITS, revision={"revision": revision, "code_revision": revision})
        torch.testing.assert_close(torch.tensor(pinned), logits)
    assert stranger.run(LOGITS, revision={"revision": later}) != pytest.approx(logits.tolist())


def test_pipelines_answer_as_the_card_promises(stranger, hub, folder):
    promised = json.loads((folder / "run.json").read_text())["card"]["outputs"]
    assert len(promised) == 2 and run_snippets(stranger, folder, promised) == promised
    guessed, features = stranger.run(
        """
        guessed = pipeline(model=repo_id, **options)
        features = pipeline("image-feature-extraction", model=repo_id, pool=False, **options)
        result = guessed.task, torch.tensor(features(image)).shape
        """
    )
    assert guessed == "image-classification" and features == [1, 6, 16]


def test_offline_afterwards(stranger, hub, logits):
    # Whatever the process before has loaded is in its cache.
    stranger.run(LOGITS, revision={})
    asked = len(hub.requests)
    with Client(stranger.folder, hub.url, stranger.python, ["hf_vit"], HF_HUB_OFFLINE="1") as client:
        client.run(STRANGER, repo_id=REPO)
        torch.testing.assert_close(torch.tensor(client.run(LOGITS, revision={})), logits)
    assert len(hub.requests) == asked


@pytest.mark.parametrize("python", PYTHONS[1:])
@pytest.mark.parametrize("stranger", PYTHONS[:1], indirect=True)
def test_the_newest_loads_what_the_oldest_pushed(python, hub, author, plain, stranger, logits, tmp_path):
    with Client(tmp_path / "oldest", hub.url, python, HF_TOKEN=TOKENS["alice"]) as oldest:
        oldest.run("from hf_vit import hub")
        push(oldest, plain, "alice/from-oldest")
    pulled = author.run("result = str(hub.pull(repo_id))", repo_id="alice/from-oldest")
    assert published_files(pulled) == published_files(plain)
    assert torch.tensor(stranger.run(LOGITS, repo_id="alice/from-oldest", revision={})).allclose(logits, atol=1e-5)
    stranger.run("", repo_id=REPO)


@pytest.mark.parametrize(
    "name, fault",
    [
        ("created", Fault("POST", "/api/repos/create", "after")),
        ("checked", Fault("POST", "/api/validate-yaml")),
        ("stored", Fault("PUT", "/", times=31)),  # huggingface_hub gives up after six times for each file
        ("verified", Fault("POST", "/lfs/objects/verify")),
        ("committed", Fault("POST", "/commit/")),
        ("answered", Fault("POST", "/commit/", "after")),
    ],
)
def test_a_lost_connection_is_made_good(hub, author, plain, name, fault):
    hub.faults.append(fault)
    commit = push(author, plain, f"acme/{name}", private=True)
    repository = hub.repositories[f"acme/{name}"]
    assert fault.times == 0 and repository.private
    assert repository.git.log() == ["Upload model", "initial commit"] and repository.git.resolve("main") == commit
    assert set(repository.git.entries(commit)) == {".gitattributes", *published_files(plain)}


def test_a_branch_and_a_pull_request(hub, author, plain):
    push(author, plain, "acme/wide", revision="half-precision")
    git = hub.repositories["acme/wide"].git
    assert git.log("half-precision") == ["Upload model", "initial commit"]
    pull_request = push(author, plain, "acme/wide", create_pr=True)
    assert git.refs("pr") == {"1": pull_request}
    assert git.log("main") == ["initial commit"]


def test_a_tag_stays_where_it_is(hub, author, plain, tmp_path):
    first = push(author, plain, "acme/tagged", tag="v1")
    assert push(author, plain, "acme/tagged", tag="v1") == first
    changed = shutil.copytree(plain, tmp_path / "digits")
    (changed / "notes.txt").write_text("new")
    push(author, changed, "acme/tagged")
    with pytest.raises(ClientError, match=r"has a tag 'v1' already.*choose another name$"):
        push(author, changed, "acme/tagged", tag="v1")
    assert hub.repositories["acme/tagged"].git.refs("tags") == {"v1": first}


def test_weights_of_an_earlier_push_go_and_other_files_stay(hub, author, plain, tmp_path):
    earlier = shutil.copytree(plain, tmp_path / "earlier")
    (earlier / "old.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    (earlier / "notes.txt").write_text("mine")
    push(author, earlier, "acme/again")
    commit = push(author, plain, "acme/again")
    git = hub.repositories["acme/again"].git
    assert set(git.entries(commit)) == {".gitattributes", "notes.txt", *published_files(plain)}
    assert git.log() == ["Upload model", "Upload model", "initial commit"]


@pytest.mark.parametrize(
    "destination, message",
    [
        ({"repo_id": "alice/x", "token": "hf_wrong"}, "the Hub needs a valid token: log in with `hf auth login`"),
        ({"repo_id": "alice/x", "token": TOKENS["reader"]}, "may not write"),
        ({"repo_id": "bob/x"}, "may not write"),
        ({"repo_id": REPO, "private": True}, "exists and is public"),
        ({"repo_id": "x//y"}, "ValueError: repo_id: .*'x//y'"),
        ({"repo_id": REPO, "revision": "dev", "create_pr": True}, "ValueError: create_pr"),
    ],
)
def test_push_is_refused(hub, author, folder, published, destination, message):
    with pytest.raises(ClientError, match=message):
        push(author, folder, **destination)
    assert not {"alice/x", "bob/x"} & set(hub.repositories)
    assert hub.repositories[REPO].git.resolve("main") == published


def test_the_hub_rejects_a_card(hub, author, plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "digits")
    card = (copy / "README.md").read_text()
    (copy / "README.md").write_text(card.replace("license: apache-2.0", "license: mine"))
    with pytest.raises(ClientError, match='"license" must be one of'):
        push(author, copy, "alice/rejected")
    assert hub.repositories["alice/rejected"].git.log() == ["initial commit"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"repo_id": "alice/none"}, "no such repository"),
        ({"repo_id": "acme/secret", "token": TOKENS["bob"]}, "no such repository"),
        ({"repo_id": REPO, "revision": "none"}, "no such branch, tag or commit"),
    ],
)
def test_pull_is_refused(hub, author, plain, published, options, message):
    if "acme/secret" not in hub.repositories:
        push(author, plain, "acme/secret", private=True)
    with pytest.raises(ClientError, match=f"HubError: {options['repo_id']}: .*{message}"):
        author.run("hub.pull(**options)", options=options)


def test_pull_brings_every_file(author, folder, published, tmp_path):
    local_dir = tmp_path / "pulled"
    for _ in range(2):
        author.run("hub.pull(**options)", options={"repo_id": REPO, "local_dir": str(local_dir)})
        assert published_files(local_dir) == published_files(folder)
        assert (local_dir / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        (local_dir / "config.json").unlink()


def test_pull_replaces_no_file_of_another_folder(author, published, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for local_dir in (tmp_path, tmp_path / "README.md"):
        with pytest.raises(ClientError, match=f"ValueError: local_dir: {local_dir} must be a new or an empty folder"):
            author.run("hub.pull(**options)", options={"repo_id": REPO, "local_dir": str(local_dir)})
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_card_names_where_the_model_went(hub, author, folder):
    commit = push(author, folder, "acme/renamed")
    git = hub.repositories["acme/renamed"].git
    card = git.blob(git.entries(commit)["README.md"].oid).decode()
    assert '"acme/renamed"' in card and f'"{REPO}"' not in card
    assert "which prints" in card, "the snippets were executed again"


def test_pushes_in_the_background(hub, author, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "digits")
    author.run(
        """
        import logging
        class Kept(logging.Handler):
            def emit(self, record):
                kept.append(record.getMessage())
        kept = []
        logging.getLogger("hf_vit.hub.background").addHandler(Kept())
        background = BackgroundPush(hub.Destination("background"), folder)
        """,
        folder=str(folder),
    )
    git = hub.repositories["alice/background"].git
    with git.lock:  # no commit ends as long as it is held
        author.run("background.push(folder, commit_message='epoch 1')")
        while not any("alice/background/commit/" in request for request in hub.requests):
            time.sleep(0.05)
        author.run("background.push(folder, commit_message='epoch 2')")
        author.run("background.push(folder, commit_message='epoch 3', checkpoint=f'{folder}/checkpoints')")
    author.run("background.wait()")
    assert git.log() == ["epoch 3", "epoch 1", "initial commit"]
    assert "last-checkpoint/optimizer.safetensors" in git.entries(git.resolve("main"))

    hub.down = True
    (folder / "notes.txt").write_text("new")
    kept = author.run("background.push(folder, commit_message='end', last=True)\nbackground.wait()\nresult = kept")
    hub.down = False
    assert git.log()[0] == "epoch 3"
    assert re.match("end: not pushed: alice/background: the Hub was not reached", kept[-1])
    assert f"hf-vit push alice/background {shlex.quote(str(folder))}" in kept[-1]


def test_a_model_that_cannot_be_saved_for_a_push_does_not_stop_its_training(hub, author, tmp_path):
    author.run(
        """
        from hf_vit.trainer.publishing import HubArguments, Publisher
        def save(folder):
            raise OSError("No space left on device")
        options = HubArguments(push_to_hub=True, hub_model_id="full", hub_strategy="every_save")
        Publisher(options, Path(folder)).after_epoch(1, save, Path(folder))
        """,
        folder=str(tmp_path),
    )
    assert hub.repositories["alice/full"].git.log() == ["initial commit"]


def test_nothing_is_sent_of_a_folder_with_a_problem(hub, author, plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "digits")
    torch.save({}, copy / "notes.bin")
    asked = len(hub.requests)
    with pytest.raises(ClientError, match=r"cannot be published:\n- notes\.bin is a pickle"):
        push(author, copy, "alice/refused")
    assert len(hub.requests) == asked


@pytest.fixture(scope="module")
def trained(author, tmp_path_factory):
    """The folder of a run that was published after an epoch with its checkpoint, and at the end, as alice/trained."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = ["--num_train_epochs=1", "--max_train_samples=64", "--max_eval_samples=40", "--dataloader_num_workers=0"]
    argv += ["--output_dir", str(folder), "--push_to_hub", "--hub_model_id", "trained", "--hub_strategy=checkpoint"]
    author.run(TRAIN, argv=argv, root=os.getcwd())
    return folder


def test_a_dry_run_makes_no_repository(hub, author, tmp_path):
    author.run(TRAIN, argv=["--dry_run", "--push_to_hub", f"--output_dir={tmp_path / 'dry'}"], root=os.getcwd())
    assert "alice/dry" not in hub.repositories


def test_training_publishes_what_it_leaves(hub, trained):
    git = hub.repositories["alice/trained"].git
    assert git.log() == ["End of training", "Epoch 1", "initial commit"]
    entries = git.entries(git.resolve("main"))
    weights = (trained / "model.safetensors").read_bytes()
    assert entries["model.safetensors"].lfs_oid == hashlib.sha256(weights).hexdigest()
    assert any(name.startswith("last-checkpoint/") for name in entries)
    assert json.loads((trained / "run.json").read_text())["arguments"]["hub_model_id"] == "alice/trained"


def test_a_stranger_gets_what_the_card_of_a_trained_model_promises(stranger, trained):
    promised = json.loads((trained / "run.json").read_text())["card"]["outputs"]
    assert len(promised) == 2 and all('"alice/trained"' in code for code in promised)
    assert run_snippets(stranger, trained, promised) == promised
