"""How files get into the loopback Hub: metadata check, upload modes, Git LFS with its storage origin, and commits."""

import base64
import fnmatch
import hashlib
import json
import os
import re
import tempfile

from hub_server.git import lfs_pointer
from hub_server.messages import Refusal, Request, Response, route
from hub_server.metadata import check_metadata

LARGE_FILE_BYTES = 10 * 2**20
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pkl", "*.zip", "*.model", "*tfevents*")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/?]+)"


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, request: Request) -> Response:
    errors, warnings, _ = check_metadata(request.json()["content"])
    told = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Response.of(told, status=400 if errors else 200)


@route("POST", f"/api/models/{REPO}/preupload/{REVISION}")
def preupload(hub, request: Request) -> Response:
    repository = hub.readable(request) if "create_pr" in request.query else hub.writable(request)
    entries = repository.git.entries(hub.commit_of(repository, request.arguments["revision"]))
    answers = []
    for file in request.json()["files"]:
        known = entries.get(file["path"])
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        answers.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
                "oid": known and (known.lfs_oid or known.oid),
            }
        )
    return Response.of({"files": answers})


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether a file belongs into LFS: by its name, its size, or because it is binary."""
    named = any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in LFS_PATTERNS)
    return named or size > LARGE_FILE_BYTES or b"\0" in sample


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def lfs_batch(hub, request: Request) -> Response:
    repository, wanted = hub.writable(request), request.json()
    if wanted["operation"] != "upload" or "basic" not in wanted["transfers"] or wanted["hash_algo"] != "sha256":
        raise Refusal(501, "only basic uploads by SHA-256")
    objects = []
    for item in wanted["objects"]:
        if not re.fullmatch("[0-9a-f]{64}", item["oid"]):
            raise Refusal(422, f"not a SHA-256: {item['oid']!r}")
        answer = {"oid": item["oid"], "size": item["size"]}
        if not repository.has_object(item["oid"], item["size"]):
            answer["actions"] = {
                "upload": {"href": hub.grant("PUT", repository, item["oid"])},
                "verify": {"href": f"{hub.url}/{repository.id}.git/info/lfs/objects/verify"},
            }
        objects.append(answer)
    return Response.of({"transfer": "basic", "objects": objects})


@route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
def lfs_verify(hub, request: Request) -> Response:
    repository, item = hub.writable(request), request.json()
    if not repository.has_object(item["oid"], item["size"]):
        raise Refusal(404, f"object {item['oid']} of {item['size']} bytes was not received")
    return Response.of({})


@route("PUT", "/(?P<grant>[^/]+)", origin="storage")
def store(hub, request: Request) -> Response:
    repository, oid = granted(hub, request, "PUT")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "the content does not have the SHA-256 that was announced")
    with tempfile.NamedTemporaryFile(dir=repository.objects, prefix=".received-", delete=False) as file:
        file.write(request.body)
    os.replace(file.name, repository.objects / oid)
    return Response(200, {"ETag": f'"{oid}"'}, b"")


@route("GET", "/(?P<grant>[^/]+)", origin="storage")
def fetch(hub, request: Request) -> Response:
    repository, oid = granted(hub, request, "GET")
    content = (repository.objects / oid).read_bytes()
    part = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if part is None:
        return Response(200, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, content)
    start = int(part.group(1))
    return Response(206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:])


def granted(hub, request: Request, action: str) -> tuple:
    """The repository and the object that an address on the storage origin stands for."""
    if "Authorization" in request.headers:
        raise Refusal(400, "the token of the Hub was sent to another origin")
    allowed, repository, oid = hub.grants.get(request.arguments["grant"], (None, None, None))
    if allowed != action:
        raise Refusal(403, "Access denied")
    return repository, oid


@route("POST", f"/api/models/{REPO}/commit/{REVISION}")
def commit(hub, request: Request) -> Response:
    opens_pull_request = "create_pr" in request.query
    repository = hub.readable(request) if opens_pull_request else hub.writable(request)
    user, branch = hub.member(request), request.arguments["revision"]
    header, files, deleted = read_operations(repository, request.body)
    with repository.git.lock:
        parent = hub.commit_of(repository, branch)
        if header.get("parentCommit") not in (None, parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if opens_pull_request:
            repository.pull_requests.append(header["summary"])
            ref = f"refs/pr/{len(repository.pull_requests)}"
        else:
            ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
            if repository.git.resolve(ref) is None:
                raise Refusal(400, f"{branch} is not a branch")
        oid = repository.git.commit(ref, parent, files, deleted, user.name, header["summary"])
    url = f"{hub.url}/{repository.id}"
    number = ref.removeprefix("refs/pr/")
    pull_request_url = f"{url}/discussions/{number}" if opens_pull_request else None
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
    return Response.of({**answer, "pullRequestUrl": pull_request_url})


def read_operations(repository, body: bytes) -> tuple[dict, dict[str, bytes], list[str]]:
    """The header, the git content of every added file, and the deleted paths, of an ndjson commit."""
    header, files, deleted = None, {}, []
    for line in body.splitlines():
        operation = json.loads(line)
        kind, value = operation["key"], operation["value"]
        if kind == "header":
            header = value
            continue
        path = value["path"]
        if any(part in ("", "..", ".git") for part in path.rstrip("/").split("/")) or "\n" in path:
            raise Refusal(400, f"Invalid path: {path!r}")
        if kind == "file":
            files[path] = base64.b64decode(value["content"], validate=True)
        elif kind == "lfsFile":
            if value["algo"] != "sha256" or not repository.has_object(value["oid"], value.get("size")):
                raise Refusal(400, f"The LFS object {value['oid']} of {path!r} was never uploaded")
            files[path] = lfs_pointer(value["oid"], (repository.objects / value["oid"]).stat().st_size)
        elif kind in ("deletedFile", "deletedFolder"):
            deleted.append(path.rstrip("/"))
        else:
            raise Refusal(400, f"unknown operation {kind!r}")
    if not header or not header.get("summary"):
        raise Refusal(400, "a commit needs a summary")
    if "README.md" in files and (errors := check_metadata(files["README.md"].decode())[0]):
        raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return header, files, deleted
