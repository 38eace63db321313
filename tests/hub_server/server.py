"""A small Hugging Face Hub on the loopback, speaking the protocol of huggingface_hub 1 and 2 for models.

Behind it are real git repositories. Large files travel by Git LFS to and from a second origin, as on the Hub (clients
must set HF_HUB_DISABLE_XET=1). What is received is hashed, and nothing is answered with success before it is stored.
"""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from hub_server.git import Entry, GitRepository
from hub_server.messages import Fault, Origin, Refusal, Request, Response, route
from hub_server.metadata import check_metadata
from hub_server.uploads import LFS_PATTERNS, REPO, REVISION

CREATED_AT = "2024-01-01T00:00:00.000Z"
NAME = re.compile(r"(?!.*(?:--|\.\.))[\w.-]{1,96}(?<!\.git)(?<![.-])", re.ASCII)


class User(NamedTuple):
    name: str
    can_write: bool = True
    organisations: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organisations)


@dataclass
class Repository:
    """A model repository. `objects` holds its LFS objects, by SHA-256."""

    id: str
    private: bool
    git: GitRepository
    objects: Path
    pull_requests: list[str] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def has_object(self, oid: str, size: int | None = None) -> bool:
        path = self.objects / oid
        return path.is_file() and size in (None, path.stat().st_size)


class Hub:
    """The Hub, from construction until `stop`.

    Args:
        folder: an empty folder to keep the repositories in.
        users: by token.

    Attributes:
        url: the value for HF_ENDPOINT.
        faults: requests that will fail.
        down: whether every connection is dropped.
        requests: the method and path of every request, in order of arrival.
        unknown: those that nothing here answers.
    """

    def __init__(self, folder: Path, users: dict[str, User]):
        self.folder, self.users = folder, users
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, dict] = {}
        self.grants: dict[str, tuple[str, Repository, str]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.down = False
        self._origins = [Origin(self, "api", "127.0.0.1"), Origin(self, "storage", "localhost")]
        self.url, self.storage_url = (origin.url for origin in self._origins)

    def stop(self) -> None:
        for origin in self._origins:
            origin.stop()

    def user(self, request: Request) -> User | None:
        """Who asks; None without a token."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if not kind:
            return None
        if kind != "Bearer" or token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def member(self, request: Request) -> User:
        user = self.user(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return user

    def writer(self, request: Request, namespace: str) -> User:
        user = self.member(request)
        if not user.can_write or namespace not in user.namespaces:
            raise Refusal(403, f"You don't have the rights to write to the namespace {namespace!r}")
        return user

    def readable(self, request: Request) -> Repository:
        """The repository of the path; a private one does not exist for those who may not read it."""
        user, repository = self.user(request), self.repositories.get(request.arguments["repo"])
        if repository is not None and (not repository.private or (user and repository.namespace in user.namespaces)):
            return repository
        if user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def writable(self, request: Request) -> Repository:
        repository = self.readable(request)
        self.writer(request, repository.namespace)
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.git.resolve(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def grant(self, action: str, repository: Repository, oid: str) -> str:
        """An address on the storage origin at which whoever has it may do one thing."""
        name = secrets.token_urlsafe(16)
        self.grants[name] = (action, repository, oid)
        return f"{self.storage_url}/{name}"


@route("GET", "/api/whoami-v2")
def whoami(hub: Hub, request: Request) -> Response:
    user = hub.member(request)
    organisations = [{"type": "org", "name": name} for name in user.organisations]
    role = "write" if user.can_write else "read"
    token = {"type": "access_token", "accessToken": {"role": role}}
    return Response.of({"type": "user", "name": user.name, "orgs": organisations, "auth": token})


@route("POST", "/api/repos/create")
def create_repository(hub: Hub, request: Request) -> Response:
    wanted = request.json()
    namespace = wanted.get("organization") or hub.member(request).name
    user = hub.writer(request, namespace)
    repo_id = f"{namespace}/{wanted['name']}"
    if wanted.get("type", "model") != "model":
        raise Refusal(501, "only models are kept here")
    if not NAME.fullmatch(wanted["name"]):
        raise Refusal(400, f"Invalid repo name: {wanted['name']!r}")
    url = f"{hub.url}/{repo_id}"
    if repo_id in hub.repositories:
        raise Refusal(409, "You already created this model repo", url=url)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    objects = hub.folder / repo_id / "objects"
    objects.mkdir(parents=True)
    repository = Repository(repo_id, private, GitRepository(hub.folder / repo_id / "git"), objects)
    attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)
    files = {".gitattributes": attributes.encode()}
    repository.git.commit("refs/heads/main", None, files, [], user.name, "initial commit")
    hub.repositories[repo_id] = repository
    return Response.of({"url": url, "name": repo_id, "id": secrets.token_hex(12)})


@route("GET", f"/api/models/{REPO}")
@route("GET", f"/api/models/{REPO}/revision/{REVISION}")
def model_info(hub: Hub, request: Request) -> Response:
    repository = hub.readable(request)
    commit = hub.commit_of(repository, request.arguments.get("revision", "main"))
    files = [entry for entry in repository.git.entries(commit).values() if entry.type == "file"]
    card = next((entry for entry in files if entry.path == "README.md"), None)
    metadata = check_metadata(repository.git.blob(card.oid).decode())[2] if card else {}
    return Response.of(
        {
            "id": repository.id,
            "modelId": repository.id,
            "author": repository.namespace,
            "sha": commit,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": CREATED_AT,
            "lastModified": CREATED_AT,
            "tags": metadata.get("tags", []),
            "pipeline_tag": metadata.get("pipeline_tag"),
            "library_name": metadata.get("library_name"),
            "cardData": metadata,
            "siblings": [{"rfilename": entry.path} for entry in files],
        }
    )


@route("GET", f"/api/models/{REPO}/refs")
def refs(hub: Hub, request: Request) -> Response:
    git = hub.readable(request).git
    kinds = {"branches": "heads", "tags": "tags", "converts": "convert", "pullRequests": "pr"}
    return Response.of(
        {
            kind: [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
                for name, commit in git.refs(folder).items()
            ]
            for kind, folder in kinds.items()
        }
    )


@route("POST", f"/api/models/{REPO}/(?P<kind>tag|branch)/{REVISION}")
def create_ref(hub: Hub, request: Request) -> Response:
    repository, wanted = hub.writable(request), request.json()
    if request.arguments["kind"] == "tag":
        ref, start = f"refs/tags/{wanted['tag']}", request.arguments["revision"]
    else:
        ref, start = f"refs/heads/{request.arguments['revision']}", wanted.get("startingPoint", "main")
    commit = hub.commit_of(repository, start)
    if repository.git.resolve(ref) is not None:
        raise Refusal(409, f"Reference {ref} exists already")
    repository.git.set_ref(ref, commit)
    return Response.of({"ref": ref, "targetCommit": commit})


def described(entry: Entry) -> dict:
    facts = {"type": entry.type, "oid": entry.oid, "size": entry.lfs_size or entry.size, "path": entry.path}
    if entry.lfs_oid:
        facts["lfs"] = {"oid": entry.lfs_oid, "size": entry.lfs_size, "pointerSize": entry.size}
    return facts


@route("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?")
def tree(hub: Hub, request: Request) -> Response:
    repository, path = hub.readable(request), request.arguments.get("path")
    entries = repository.git.entries(hub.commit_of(repository, request.arguments["revision"]))
    if path is not None and path not in entries:
        raise Refusal(404, f"{path} does not exist on this revision", "EntryNotFound")
    prefix = f"{path}/" if path else ""
    recursive = request.query.get("recursive", "false").lower() == "true"
    inside = [entry for entry in entries.values() if entry.path.startswith(prefix)]
    return Response.of([described(entry) for entry in inside if recursive or "/" not in entry.path[len(prefix) :]])


@route("POST", f"/api/models/{REPO}/paths-info/{REVISION}")
def paths_info(hub: Hub, request: Request) -> Response:
    repository = hub.readable(request)
    entries = repository.git.entries(hub.commit_of(repository, request.arguments["revision"]))
    wanted = parse_qs(request.body.decode())["paths"]
    return Response.of([described(entries[path]) for path in wanted if path in entries])


@route("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
def resolve(hub: Hub, request: Request) -> Response:
    repository = hub.readable(request)
    commit = hub.commit_of(repository, request.arguments["revision"])
    headers = {"X-Repo-Commit": commit}
    entry = repository.git.entries(commit).get(request.arguments["path"])
    if entry is None or entry.type != "file":
        raise Refusal(404, "Entry not found", "EntryNotFound", headers)
    headers["ETag"] = f'"{entry.oid}"'
    if entry.lfs_oid is None:
        return Response(200, {**headers, "Content-Type": "text/plain"}, repository.git.blob(entry.oid))
    linked = {"X-Linked-Etag": f'"{entry.lfs_oid}"', "X-Linked-Size": str(entry.lfs_size)}
    location = {"Location": hub.grant("GET", repository, entry.lfs_oid)}
    return Response(302, {**headers, **linked, **location}, b"Found")


@route("POST", "/api/collections")
def create_collection(hub: Hub, request: Request) -> Response:
    wanted = request.json()
    hub.writer(request, wanted["namespace"])
    for slug, collection in hub.collections.items():
        if (collection["title"], collection["owner"]["name"]) == (wanted["title"], wanted["namespace"]):
            raise Refusal(409, "This collection already exists", slug=slug)
    name = re.sub(r"\W+", "-", wanted["title"].lower())
    slug = f"{wanted['namespace']}/{name}-{secrets.token_hex(12)}"
    hub.collections[slug] = {
        "slug": slug,
        "title": wanted["title"],
        "owner": {"name": wanted["namespace"]},
        "private": wanted["private"],
        "items": [],
        "lastUpdated": CREATED_AT,
        "position": 0,
        "theme": "orange",
        "upvotes": 0,
    }
    return Response.of(hub.collections[slug])


def collection_of(hub: Hub, request: Request) -> dict:
    try:
        return hub.collections[request.arguments["slug"]]
    except KeyError:
        raise Refusal(404, "Collection not found") from None


@route("GET", "/api/collections/(?P<slug>[^/]+/[^/]+)")
def collection_info(hub: Hub, request: Request) -> Response:
    collection = collection_of(hub, request)
    if collection["private"]:
        hub.writer(request, collection["owner"]["name"])
    return Response.of(collection)


@route("POST", "/api/collections/(?P<slug>[^/]+/[^/]+)/items")
def add_to_collection(hub: Hub, request: Request) -> Response:
    collection, item = collection_of(hub, request), request.json()["item"]
    hub.writer(request, collection["owner"]["name"])
    if item["type"] != "model" or item["id"] not in hub.repositories:
        raise Refusal(404, f"{item['type']} {item['id']} not found")
    if item["id"] in [known["id"] for known in collection["items"]]:
        raise Refusal(409, "This item is already in the collection")
    position = len(collection["items"])
    collection["items"].append({**item, "_id": secrets.token_hex(12), "position": position})
    return Response.of(collection)
