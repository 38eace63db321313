"""The store behind the loopback Hub: bare git repositories, driven through git's own plumbing."""

import os
import subprocess
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

LFS_VERSION = b"version https://git-lfs.github.com/spec/v1"
_GIT_ENVIRONMENT = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


class Entry(NamedTuple):
    """A path of a commit. `oid` and `size` are those of the git object, an LFS file's being its pointer's."""

    path: str
    type: str  # "file" or "directory"
    oid: str
    size: int
    lfs_oid: str | None = None  # SHA-256 of the content
    lfs_size: int | None = None


def lfs_pointer(oid: str, size: int) -> bytes:
    """The file that git holds in place of a large one."""
    return LFS_VERSION + f"\noid sha256:{oid}\nsize {size}\n".encode()


class GitRepository:
    """A bare repository. Commits are whole or absent: readers see the old tip of a branch until the new one is set."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self.blob = lru_cache(maxsize=None)(self._blob)
        self._git("init", "--quiet", "--bare", "--initial-branch=main", str(path), in_repository=False)

    def _git(self, *arguments: str, stdin: bytes = b"", in_repository: bool = True) -> bytes:
        where = ["--git-dir", str(self.path)] if in_repository else []
        return subprocess.run(
            ["git", *where, *arguments], input=stdin, capture_output=True, check=True, env=_GIT_ENVIRONMENT
        ).stdout

    def refs(self, kind: str) -> dict[str, str]:
        """The commits of the refs under `refs/<kind>/`, by name."""
        lines = self._git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/{kind}/").decode().splitlines()
        return {
            name.removeprefix(f"refs/{kind}/"): commit for name, _, commit in (line.partition(" ") for line in lines)
        }

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag, `refs/...` or a full hash; None when there is none."""
        candidates = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        if revision.startswith("refs/") or (len(revision) == 40 and revision.isalnum()):
            candidates = [revision]
        for name in candidates:
            try:
                found = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
            except subprocess.CalledProcessError:
                continue
            return found.decode().strip()
        return None

    def entries(self, commit: str) -> dict[str, Entry]:
        """Every file and folder of a commit, by path."""
        entries = {}
        for line in self._git("ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]:
            facts, _, path = line.partition("\t")
            _, kind, oid, size = facts.split()
            if kind == "tree":
                entries[path] = Entry(path, "directory", oid, 0)
            else:
                entries[path] = Entry(path, "file", oid, int(size), *self._pointed_to(oid, int(size)))
        return entries

    def _pointed_to(self, oid: str, size: int) -> tuple[str | None, int | None]:
        content = self.blob(oid) if size < 200 else b""
        if not content.startswith(LFS_VERSION):
            return None, None
        fields = dict(line.split(" ", 1) for line in content.decode().splitlines())
        return fields["oid"].removeprefix("sha256:"), int(fields["size"])

    def _blob(self, oid: str) -> bytes:
        return self._git("cat-file", "blob", oid)

    def commit(
        self, ref: str, parent: str | None, files: dict[str, bytes], deleted: list[str], author: str, message: str
    ):
        """Sets `ref` to a new commit on `parent`, and returns its hash. Files and folders are deleted first."""

        def data(content: bytes) -> bytes:
            return b"data %d\n%b\n" % (len(content), content)

        stream = [f"commit {ref}\ncommitter {author} <{author}@hub> {int(time.time())} +0000\n".encode()]
        stream.append(data(message.encode()))
        if parent is not None:
            stream.append(f"from {parent}\n".encode())
        stream += [f"D {path}\n".encode() for path in deleted]
        stream += [f"M 100644 inline {path}\n".encode() + data(content) for path, content in files.items()]
        self._git("fast-import", "--quiet", "--done", stdin=b"".join([*stream, b"done\n"]))
        return self.resolve(ref)

    def set_ref(self, ref: str, commit: str) -> None:
        """Creates a branch or a tag."""
        self._git("update-ref", ref, commit, "0" * 40)

    def log(self, revision: str = "main") -> list[str]:
        """The first lines of the commit messages, newest first."""
        return self._git("log", "--format=%s", revision).decode().splitlines()
