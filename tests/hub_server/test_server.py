"""The loopback Hub keeps what it says it keeps: asked over plain HTTP, and its repositories by git itself."""

import base64
import hashlib
import json
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest

from hub_server.server import Hub, User

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="the loopback Hub needs git")
CONTENT = b"some weights"
OID = hashlib.sha256(CONTENT).hexdigest()
HEADER = {"key": "header", "value": {"summary": "add files"}}
POINTER = {"key": "lfsFile", "value": {"path": "m.safetensors", "algo": "sha256", "oid": OID, "size": len(CONTENT)}}


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path, {"token": User("alice")})
    yield hub
    hub.stop()


@pytest.fixture
def ask(hub):
    """`ask(method, path or address, body)` as Alice: the status, the headers and the body of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirects)

    def ask(method, path, body=None, token="token"):
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        address = path if path.startswith("http") else hub.url + path
        try:
            answer = opener.open(urllib.request.Request(address, content, headers, method=method))
        except urllib.error.HTTPError as error:
            answer = error
        return answer.status, answer.headers, answer.read()

    assert ask("POST", "/api/repos/create", {"name": "model"})[0] == 200
    return ask


def commit(ask, *operations):
    return ask("POST", "/api/models/alice/model/commit/main", b"\n".join(json.dumps(op).encode() for op in operations))


def upload_address(ask):
    batch = {"operation": "upload", "transfers": ["basic"], "hash_algo": "sha256"}
    objects = [{"oid": OID, "size": len(CONTENT)}]
    answer = ask("POST", "/alice/model.git/info/lfs/objects/batch", {**batch, "objects": objects})[2]
    return json.loads(answer)["objects"][0].get("actions", {}).get("upload", {}).get("href")


def test_a_commit_waits_for_its_large_files(hub, ask):
    git = hub.repositories["alice/model"].git
    text = {
        "key": "file",
        "value": {"path": "a.txt", "encoding": "base64", "content": base64.b64encode(b"a").decode()},
    }
    verify = "/alice/model.git/info/lfs/objects/verify", {"oid": OID, "size": len(CONTENT)}
    assert commit(ask, HEADER, text, POINTER)[0] == 400
    assert git.log() == ["initial commit"]

    address = upload_address(ask)
    assert address.startswith(hub.storage_url) and hub.storage_url != hub.url
    assert ask("PUT", address, CONTENT[:-1], token=None)[0] == 400, "the hash is not the announced one"
    assert ask("PUT", address, CONTENT)[0] == 400, "the Hub's token is not for the storage"
    assert ask("POST", *verify)[0] == 404
    assert commit(ask, HEADER, text, POINTER)[0] == 400
    assert ask("PUT", address, CONTENT, token=None)[0] == 200
    assert ask("POST", *verify)[0] == 200 and upload_address(ask) is None
    status, _, body = commit(ask, HEADER, text, POINTER)
    assert status == 200 and git.log() == ["add files", "initial commit"]
    assert json.loads(body)["commitOid"] == git.resolve("main")

    assert subprocess.run(["git", "--git-dir", git.path, "fsck", "--strict"], capture_output=True).returncode == 0
    shown = subprocess.run(["git", "--git-dir", git.path, "show", "main:m.safetensors"], capture_output=True).stdout
    assert shown == f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize {len(CONTENT)}\n".encode()


def test_files_are_found_by_their_hashes(hub, ask):
    ask("PUT", upload_address(ask), CONTENT, token=None)
    commit(ask, HEADER, POINTER)
    tip = hub.repositories["alice/model"].git.resolve("main")
    status, headers, body = ask("GET", "/alice/model/resolve/main/.gitattributes")
    expected = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    assert (status, headers["ETag"], headers["X-Repo-Commit"]) == (200, f'"{expected}"', tip)
    status, headers, _ = ask("HEAD", f"/alice/model/resolve/{tip}/m.safetensors")
    assert (status, headers["X-Linked-Etag"], headers["X-Linked-Size"]) == (302, f'"{OID}"', str(len(CONTENT)))
    assert ask("GET", headers["Location"], token=None)[2] == CONTENT


@pytest.mark.parametrize(
    "path, token, status, code",
    [
        ("/alice/model/resolve/main/none.txt", "token", 404, "EntryNotFound"),
        ("/alice/model/resolve/none/a.txt", "token", 404, "RevisionNotFound"),
        ("/api/models/alice/none", "token", 404, "RepoNotFound"),
        ("/api/models/alice/none", None, 401, "RepoNotFound"),
        ("/api/models/alice/model", "wrong", 401, None),
        ("/api/whoami-v2", None, 401, None),
    ],
)
def test_refusals_have_the_codes_of_the_hub(ask, path, token, status, code):
    found, headers, _ = ask("GET", path, token=token)
    assert (found, headers["X-Error-Code"]) == (status, code)


def test_an_existing_name_is_answered_with_its_address(hub, ask):
    status, _, body = ask("POST", "/api/repos/create", {"name": "model"})
    assert status == 409 and json.loads(body)["url"] == f"{hub.url}/alice/model"


@pytest.mark.parametrize(
    "metadata, error",
    [
        ("license: mine", '"license" must be one of'),
        ("license: [", "YAML parse error"),
        ("- a", "must be a YAML mapping"),
        ("base_model: ../x", '"base_model" must hold repository ids'),
        ("language: klingonese", '"language" holds'),
        ("tags: [1]", '"tags" holds 1'),
        ("model-index: [{name: x, results: [{task: {type: a}, dataset: {name: b}}]}]", "dataset.type"),
    ],
)
def test_metadata_is_really_checked(ask, metadata, error):
    content = f"---\n{metadata}\n---\n# Model\n"
    status, _, body = ask("POST", "/api/validate-yaml", {"content": content, "repoType": "model"})
    assert status == 400 and any(error in each["message"] for each in json.loads(body)["errors"])
    card = {"path": "README.md", "encoding": "base64", "content": base64.b64encode(content.encode()).decode()}
    assert commit(ask, HEADER, {"key": "file", "value": card})[0] == 400
