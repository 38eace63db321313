"""Publishes a model's folder on the Hugging Face Hub, and fetches models from there."""

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_vit.fingerprint import check_fingerprint
from hf_vit.hub.doctor import examine, published_files
from hf_vit.hub.own_code import is_older
from hf_vit.hub.staging import name_in_card, staged
from hf_vit.isolated.fresh_process import FreshProcess, fresh_process

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

RETRY_DELAYS_S = (1, 4, 16)  # before each repetition of a call that the network has failed
MAX_DIFFERENCE = 1e-5  # of the outputs in fp32 on the same machine, before and after the round trip
COMMIT_MESSAGE = "Upload model"
_PULLED = ".cache/huggingface"  # huggingface_hub's notes on what it has put into a folder
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_HTTPError = HfHubHTTPError.__bases__[0]  # of httpx in huggingface_hub 1, of httpx2 in 2


class HubError(RuntimeError):
    """The Hub said no or could not be reached. The message says what to do; no local file was touched."""


@dataclass(frozen=True)
class Destination:
    """Where on the Hub a folder goes; the fields are named as the options of the `hf` command.

    Args:
        repo_id: `namespace/name`, the namespace being a user or an organisation, or `name` alone for one's own.
        private: make a new repository private (True) or public (False); its owner's default when None.
        revision: the branch, made from `main` if it does not exist; `main` when None.
        create_pr: open a pull request against `main`.
        tag: a new tag for the commit.
        collection: title of a collection of the same namespace that the repository is put into, made if need be.
        token: the one of `hf auth login` or of `HF_TOKEN` when None.

    Raises:
        ValueError: the id is no repository's, or a pull request is to be made to another branch than `main`.
    """

    repo_id: str
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    collection: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id: {error}") from None
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError(f"create_pr opens a pull request against main, revision must not be {self.revision!r}")

    def command(self, folder: str | os.PathLike) -> str:
        """The command line that pushes `folder` here."""
        words = ["hf-vit", "push", self.repo_id, os.fspath(folder)]
        if self.private is not None:
            words.append("--private" if self.private else "--no-private")
        for name in ("revision", "tag", "collection"):
            if getattr(self, name) is not None:
                words += [f"--{name}", getattr(self, name)]
        return shlex.join(words + ["--create-pr"] * self.create_pr)


def push(
    folder: str | os.PathLike, destination: Destination, *, commit_message: str = COMMIT_MESSAGE, load: bool = True
) -> CommitInfo:
    """Publishes a folder in one commit, after checking it and before checking what arrived.

    The folder must pass `doctor.examine` and, with `load`, be loaded by a process that has neither this package nor
    anything in its caches (which **executes the code in the folder**); after the upload the same process loads the
    model by its id and compares the outputs. What is uploaded differs from the folder in this: absolute paths in
    `run.json` are cut to their last part, and the card's snippets name `destination`; and code of an older version of
    this package is replaced by this one's, if that computes the same. Weights of an earlier push that
    the folder no longer holds are deleted in the same commit; other files there stay. Calls that the network fails are
    repeated a few times; the folder itself is never changed.

    Returns:
        The commit. `oid` is its hash, `pr_url` the pull request, if one was asked for.

    Raises:
        ValueError: the folder cannot be published; the message lists what is wrong.
        HubError: the Hub said no, or was not reached; the message ends with the command that finishes the job.
    """
    with staged(folder, refresh=True) as stage:
        if problems := examine(stage, folder):
            raise ValueError(_listed(folder, problems))
        if not load:
            with explained(destination, folder):
                return _publish(stage, folder, destination, commit_message)
        with explained(destination, folder):
            _repeated(_api(destination).whoami)  # a wrong token is known before the model is loaded
        with fresh_process(token=destination.token) as process:
            if is_older(folder):
                _compare_codes(process, folder, stage)
            try:
                process.load(stage)
            except RuntimeError as error:
                raise ValueError(_listed(folder, [f"it does not load without this package: {error}"])) from None
            with explained(destination, folder):
                return _publish(stage, folder, destination, commit_message, process)


def _compare_codes(process: FreshProcess, folder: str | os.PathLike, stage: Path) -> None:
    try:
        process.load(folder)
    except RuntimeError as error:  # code too old for this transformers cannot be asked
        logger.warning("%s: its own code does not load (%s), and is replaced unseen", folder, error)
        return
    difference = process.load(stage).difference
    if not difference <= MAX_DIFFERENCE:
        problem = (
            f"its own code is of an older version and was changed: this package's, which would take its place, gives "
            f"outputs that differ by {difference:g}; save the model with classes of your own, or without the change"
        )
        raise ValueError(_listed(folder, [problem]))


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    local_dir: str | os.PathLike | None = None,
    token: str | None = None,
) -> Path:
    """Downloads a whole model repository; nothing in it is executed.

    Args:
        local_dir: a folder that is new, empty or of an earlier pull, whose files are brought up to date.

    Returns:
        Its folder: `local_dir`, or the snapshot in the Hub's cache, named by its commit.

    Raises:
        ValueError: the id is no repository's, or `local_dir` holds files of something else.
        HubError: there is no such repository or revision, it is private, the Hub was not reached, or the model is not
            the one that its record keeps a digest of.
    """
    destination = Destination(repo_id, token=token)
    if local_dir is not None and Path(local_dir).exists():
        folder = Path(local_dir)
        if not folder.is_dir() or (any(folder.iterdir()) and not (folder / _PULLED).is_dir()):
            raise ValueError(f"local_dir: {local_dir} must be a new or an empty folder, or one of an earlier pull")
    with explained(destination):
        folder_or_cache = None if local_dir is None else Path(local_dir)
        folder = Path(_api(destination).snapshot_download(repo_id, revision=revision, local_dir=folder_or_cache))
        check_fingerprint(folder)
        return folder


def _api(destination: Destination) -> HfApi:
    return HfApi(token=destination.token, library_name="hf_vit")


def create_repository(destination: Destination) -> str:
    """The full id of the repository, which exists from now on.

    Raises:
        ValueError: it is public and was to be private.
        OSError: the Hub said no, or was not reached.
    """
    api = _api(destination)
    repo_id = _repeated(
        lambda: api.create_repo(destination.repo_id, private=destination.private, exist_ok=True).repo_id
    )
    if destination.private and not _repeated(lambda: api.model_info(repo_id)).private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave out --private")
    return repo_id


def _publish(
    stage: Path,
    folder: str | os.PathLike,
    destination: Destination,
    commit_message: str,
    process: FreshProcess | None = None,
) -> CommitInfo:
    """Card, commit, comparison by `process`, tag and collection."""
    api = _api(destination)
    repo_id = create_repository(destination)
    branch, tag = destination.revision, destination.tag
    if branch is not None and branch != "main":
        _repeated(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
    tags = {}
    if tag is not None:
        refs = _repeated(lambda: api.list_repo_refs(repo_id))
        tags = {each.name: each.target_commit for each in refs.tags}
        tips = {each.name: each.target_commit for each in refs.branches}
        _check_tag(tag, tags, tips.get(destination.revision or "main"))
    name_in_card(stage, repo_id)

    def commit() -> CommitInfo:
        # upload_folder may spread a folder over several commits. New operations each time: if an answer was lost, the
        # files are found to be there already, and no second commit is made.
        names = published_files(stage, folder)
        # Weights of an earlier push, such as shards, would be taken for this model's. Other files may be anyone's.
        there = api.list_repo_files(repo_id, revision=destination.revision)
        stale = [name for name in there if fnmatch(name, "*.safetensors*") and name not in names]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, stage / name) for name in names
        ]
        operations += [CommitOperationDelete(name) for name in stale if "/" not in name]
        options: dict[str, Any] = {"revision": destination.revision, "create_pr": destination.create_pr}
        return api.create_commit(repo_id, operations, commit_message=commit_message, **options)

    info = _repeated(commit)
    if process is not None:
        _compare(process, repo_id, info)
    if tag is not None:
        _check_tag(tag, tags, info.oid)
        _repeated(lambda: api.create_tag(repo_id, tag=tag, revision=info.oid, exist_ok=True))
    title = destination.collection
    if title is not None:
        namespace = repo_id.split("/")[0]
        options: dict[str, Any] = {"namespace": namespace, "private": bool(destination.private), "exists_ok": True}
        collection = _repeated(lambda: api.create_collection(title, **options))
        _repeated(lambda: api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True))
    return info


def _check_tag(tag: str, tags: dict[str, str], commit: str | None) -> None:
    """A tag may be there from a push that was cut short, but only on the same commit."""
    if tags.get(tag, commit) != commit:
        raise ValueError(f"it has a tag {tag!r} already, on another commit: choose another name")


def _compare(process: FreshProcess, repo_id: str, info: CommitInfo) -> None:
    try:
        loaded = process.load(repo_id, revision=info.oid)
    except RuntimeError as error:
        raise RuntimeError(f"uploaded as commit {info.oid}, which does not load from the Hub: {error}") from None
    if not loaded.difference <= MAX_DIFFERENCE:
        raise RuntimeError(
            f"uploaded as commit {info.oid}, but loaded from the Hub its outputs differ by {loaded.difference:g}"
        )


def _repeated(call: Callable[[], Result]) -> Result:
    for delay in RETRY_DELAYS_S:
        try:
            return call()
        except Exception as error:
            if not _is_transient(error):
                raise
            logger.warning("%s; trying again in %g s", _first_line(error), delay)
        time.sleep(delay)
    return call()


def _is_transient(error: BaseException | None) -> bool:
    """Whether the network or a passing state of the Hub made a call fail; uploads hide that in the error's cause."""
    if error is None:
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in _TRANSIENT_STATUS
    return isinstance(error, (_HTTPError, ConnectionError, TimeoutError)) or _is_transient(error.__cause__)


@contextmanager
def explained(destination: Destination, folder: str | os.PathLike | None = None) -> Iterator[None]:
    """Turns every error into a `HubError` that says what to do."""
    try:
        yield
    except Exception as error:
        message = f"{destination.repo_id}: {_reason(error)}"
        refused = isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError)  # by this module
        if folder is not None and not refused:
            message += f"\n{folder} is unchanged. To finish the job, run\n\n    {destination.command(folder)}\n"
        raise HubError(message) from error


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if _is_transient(error):
        return f"the Hub was not reached ({_first_line(error)})"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private and the token may not read it"
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit"
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return "the Hub needs a valid token: log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the token may not write there: use one with the right to write, or another namespace"
    return str(error).strip()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _listed(folder: str | os.PathLike, problems: list[str]) -> str:
    return "\n- ".join([f"{folder} cannot be published:", *problems])
