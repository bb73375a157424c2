"""A hub for models on the loopback interface: repositories with commits, branches and tags, private ones, and failures.

``use`` makes the current process its client; ``hub_worker.py`` runs a command of sepo as one; a new process is one with
the variables of ``environment``. No host is needed.
"""

import contextlib
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

from sepo.scoring.hub import HubAccess, forget_hub, hub_access, offline_switches

LARGE = (".safetensors", ".bin")


@dataclass
class Repository:
    """A repository: files by commit, and commits by branch or tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], *names: str) -> str:
        """Add a commit to which branches or tags point; return its hash."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.commits[digest] = files
        self.refs |= dict.fromkeys(names or ("main",), digest)
        return digest


class Hub:
    """A hub with a log of the requests that it answered.

    Attributes:
        repositories: by name.
        tokens: tokens that give access to private and gated repositories.
        requests: method, path and whether a token was sent, of every request.
        broken: files (``name/file``) of which only the first half of the bytes arrives, and how often.
        wait: seconds before each answer.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.requests: list[tuple[str, str, bool]] = []
        self.broken: dict[str, int] = {}
        self.wait = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self):
        """Stop answering: later connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, *folders, more=None, revision="main", private=False, gated=False) -> str:
        """Add a commit with the files of directories, and more by name; return its hash."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for folder in map(Path, folders)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        files |= {path: text if isinstance(text, bytes) else text.encode() for path, text in (more or {}).items()}
        repository = self.repositories.setdefault(name, Repository())
        repository.private, repository.gated = private, gated
        return repository.commit(files, revision)

    def fetched(self, name: str) -> set[str]:
        """Return the files of a repository whose content was requested."""
        start = f"/{name}/resolve/"
        return {
            path.removeprefix(start).partition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and path.startswith(start)
        }

    def lookups(self, name: str) -> list[str]:
        """Return the requests for information about a repository."""
        return [path for _, path, _ in self.requests if path.startswith(f"/api/models/{name}")]


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """Return the variables of a process that uses a hub, with an own cache and without a login."""
    return {
        "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_TOKEN": "",
        "HF_TOKEN_PATH": str(cache / "no-token"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_MODULES_CACHE": str(cache / "modules"),
    }  # fmt: skip


def use(endpoint: str, monkeypatch, cache: Path) -> None:
    """Make this process use a hub: sets the client's constants until the end of a test."""
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http
    from transformers.utils import hub as hub_of_transformers

    for name, value in environment(endpoint, cache).items():
        monkeypatch.setenv(name, value)
    values = {
        "ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache),
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_TOKEN_PATH": str(cache / "no-token"), "HF_HUB_DISABLE_XET": True,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    set_offline(monkeypatch, False)
    if hasattr(hub_of_transformers, "TRANSFORMERS_CACHE"):  # before transformers 5: a copy from its import
        monkeypatch.setattr(hub_of_transformers, "TRANSFORMERS_CACHE", str(cache))
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):  # before huggingface_hub 1
        monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", values["HUGGINGFACE_CO_URL_TEMPLATE"])
    with contextlib.suppress(AttributeError):
        _http.close_session()
    forget_hub()


def set_offline(monkeypatch, offline=True) -> None:
    """Set what ``HF_HUB_OFFLINE`` sets in a new process."""
    for module, name in offline_switches():
        monkeypatch.setattr(module, name, offline)


@contextlib.contextmanager
def running():
    """Give the block a hub, and stop it at the end."""
    hub = Hub()
    try:
        yield hub
    finally:
        with contextlib.suppress(OSError):
            hub.close()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # one request per connection: none outlives ``close``

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self._answer()

        def do_GET(self):
            self._answer()

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer()

        def _answer(self):
            url = urlsplit(self.path)
            path, parts = unquote(url.path), [unquote(part) for part in url.path.strip("/").split("/")]
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.requests.append((self.command, path, bool(token)))
            if hub.wait:
                time.sleep(hub.wait)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._route(parts, token, parse_qs(url.query))

        def _route(self, parts, token, query):
            if parts[:2] == ["api", "models"]:
                name, rest = "/".join(parts[2:4]), parts[4:]
                repository = self._repository(name, token, content=False)
                if repository is not None:
                    self._information(name, repository, rest, query)
            elif "resolve" in parts:
                name, rest = "/".join(parts[:2]), parts[3:]
                repository = self._repository(name, token, content=True)
                if repository is not None:
                    self._file(name, repository, rest[0], "/".join(rest[1:]))
            else:
                self._error(404, "")

        def _repository(self, name, token, *, content):
            repository = hub.repositories.get(name)
            allowed = token in hub.tokens
            if token and not allowed:
                self._error(401, "", "Invalid credentials in Authorization header")
            elif repository is None or (repository.private and not allowed):
                self._error(404 if allowed else 401, "RepoNotFound", "Repository not found")
            elif content and repository.gated and not allowed:  # their information is public
                self._error(401, "GatedRepo", "Access to this repository is restricted")
            else:
                return repository
            return None

        def _commit(self, repository, revision):
            commit = repository.refs.get(revision, revision)
            if commit not in repository.commits:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return commit

        def _information(self, name, repository, rest, query):
            kind, revision = (rest[0], rest[1]) if len(rest) > 1 else ("revision", "main")
            commit = self._commit(repository, revision)
            if commit is None:
                return
            files = repository.commits[commit]
            if kind == "tree":
                folder = "/".join(rest[2:])
                names = [item for item in files if not folder or item.startswith(folder + "/")]
                if folder and not names:
                    self._error(404, "EntryNotFound", "no such folder")
                    return
                if query.get("recursive", ["false"])[0].lower() != "true":
                    depth = len(folder) + 1 if folder else 0
                    names = [item for item in names if "/" not in item[depth:]]
                self._json([_entry(item, files[item]) for item in names])
                return
            self._json({"id": name, "sha": commit, "private": repository.private, "tags": [],
                        "siblings": [{"rfilename": item} for item in files]})  # fmt: skip

        def _file(self, name, repository, revision, file):
            commit = self._commit(repository, revision)
            if commit is None:
                return
            content = repository.commits[commit].get(file)
            if content is None:
                self._error(404, "EntryNotFound", "Entry not found", commit=commit)
                return
            whole = len(content)
            etag = _digest(file, content)
            start = 0
            requested = self.headers.get("Range")
            if requested:
                start = int(requested.removeprefix("bytes=").split("-")[0])
            left = content[start:]
            self.send_response(206 if requested else 200)
            if requested:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.send_header("ETag", f'"{etag}"')
            if file.endswith(LARGE):
                self.send_header("X-Linked-Etag", f'"{etag}"')
                self.send_header("X-Linked-Size", str(whole))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(left)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.broken.get(f"{name}/{file}", 0) > 0:
                hub.broken[f"{name}/{file}"] -= 1
                self.wfile.write(left[: len(left) // 2])
                self.wfile.flush()
                return
            self.wfile.write(left)

        def _json(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _error(self, status, code, message="", commit=None):
            body = json.dumps({"error": message}).encode()
            self.send_response(status)
            for header, value in (("X-Error-Code", code), ("X-Error-Message", message), ("X-Repo-Commit", commit)):
                if value:
                    self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def _digest(file, content):
    if file.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _entry(file, content):
    entry = {"type": "file", "path": file, "size": len(content), "oid": _digest("", content)}
    if file.endswith(LARGE):
        digest = _digest(file, content)
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


class LocalModels(SimpleNamespace):
    """Model arguments of a host, for tests that name local directories only."""


@hub_access.register(LocalModels)
def _local(model_args: LocalModels) -> HubAccess:
    return HubAccess()
