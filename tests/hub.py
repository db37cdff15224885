"""A stand-in for the Hugging Face hub: as much of its protocol as this project's libraries use.

    with Hub([repository, ...]) as hub:   a server on 127.0.0.1; hub.url is its HF_ENDPOINT
    hub.fault("someone/cut", cut=100)     the answers to matching requests go wrong
    hub.requests                          all that was asked for

What it knows of the hub: information, trees in pages and paths of model and data set repositories
at any branch or commit; files with their headers, small ones redirected within the hub and large
ones to a second server, as to the hub's content network; tokens, gated repositories, and the error
codes that `huggingface_hub` tells apart.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

CONVERTED = "refs/convert/parquet"  # where the hub keeps a data set as parquet files
ACCEPTED = "hf_accepted"  # the token of a user who may read gated repositories
STRANGER = "hf_stranger"  # of one who may not
LARGE = (".safetensors", ".parquet", ".bin", ".pth", ".zip", ".model")  # kept outside of git
PAGE = 4  # entries of a tree in one answer; the hub has 1000


# ---- repositories --------------------------------------------------------------------------------


@dataclass
class Repository:
    """A repository's branches, and who may read it. A branch is {path: content}."""

    name: str  # owner/name
    branches: dict[str, dict[str, bytes]]
    kind: str = "models"  # or "datasets"
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or commit names, None where there is none."""
        for branch, files in self.branches.items():
            sha = commit_of(self.name, branch, files)
            if revision in (branch, sha):
                return sha
        return None

    def files(self, sha: str) -> dict[str, bytes]:
        for branch, files in self.branches.items():
            if commit_of(self.name, branch, files) == sha:
                return files
        raise KeyError(sha)


def commit_of(name: str, branch: str, files: dict[str, bytes]) -> str:
    """A commit's id: it changes with the content, as git's does."""
    total = hashlib.sha1(f"{name} {branch}".encode())
    for path in sorted(files):
        total.update(path.encode() + hashlib.sha1(files[path]).digest())
    return total.hexdigest()


def blob_of(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tree_of(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    """The entries of a folder, in the order and with the fields of the hub."""
    entries = {}
    start = f"{folder}/" if folder else ""
    for path, content in sorted(files.items()):
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts)):
            parent = start + "/".join(parts[:depth])
            if recursive or depth == 1:
                entries[parent] = {
                    "type": "directory",
                    "oid": sha1_of(parent),
                    "size": 0,
                    "path": parent,
                }
        if recursive or len(parts) == 1:
            entries[path] = file_entry(path, content)
    return list(entries.values())


def sha1_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def file_entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "oid": blob_of(content), "size": len(content), "path": path}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256_of(content), "size": len(content), "pointerSize": 134}
    return entry


# ---- what goes wrong, and what was asked ---------------------------------------------------------


@dataclass
class Fault:
    """What happens to the answers of matching requests."""

    pattern: re.Pattern  # searched in "<method> <path>"
    times: float  # how often it still happens
    status: int | None = None  # an error instead of the answer
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0  # of waiting before it
    cut: int | None = None  # bytes of the body, then the connection ends
    reset: bool = False  # it ends with an error (RST) instead of an end (FIN)
    drip: float | None = None  # seconds between one byte of the body and the next


NO_FAULT = Fault(re.compile(""), 0)


@dataclass(frozen=True)
class Request:
    """A request that came in."""

    server: str  # "hub", or "content" for the content network
    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class Answer:
    """A status, headers and a body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(200, json.dumps(value).encode(), headers)


def error(status: int, code: str | None, message: str, **headers: str) -> Answer:
    """An error as the hub tells it: in headers, and as JSON."""
    answer = as_json({"error": message})
    answer.status = status
    answer.headers.update(headers)
    answer.headers["X-Error-Message"] = message
    if code:
        answer.headers["X-Error-Code"] = code
    return answer


# ---- the servers ---------------------------------------------------------------------------------


class Hub:
    """The hub and its content network, from `start` to `stop`; both keep their ports."""

    def __init__(self, repositories: list[Repository]):
        self.repositories = {(each.kind, each.name): each for each in repositories}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.ports = {"hub": 0, "content": 0}
        self.servers: list[ThreadingHTTPServer] = []
        self.closing = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['hub']}"

    @property
    def content_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['content']}"

    def start(self) -> None:
        self.closing.clear()
        for name, handler in (("hub", HubHandler), ("content", ContentHandler)):
            server = Server(("127.0.0.1", self.ports[name]), handler)
            server.hub = self
            self.ports[name] = server.server_port
            self.servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused."""
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.servers.clear()

    def commit(self, name: str, kind: str = "models", revision: str = "main") -> str:
        return self.repositories[kind, name].commit(revision)

    def fault(self, pattern: str, times: float = float("inf"), **what) -> Fault:
        """Let the first `times` requests whose "<method> <path>" has the pattern go wrong."""
        fault = Fault(re.compile(pattern), times, **what)
        self.faults.append(fault)
        return fault

    def next_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.pattern.search(line):
                fault.times -= 1
                return fault
        return None

    def forget(self) -> None:
        """No faults, and no requests so far."""
        self.faults.clear()
        self.requests.clear()

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "<method> <path>" has the pattern."""
        found = []
        for request in list(self.requests):
            if re.search(pattern, f"{request.method} {request.path}"):
                found.append(request)
        return found


class Server(ThreadingHTTPServer):
    """Requests in threads that end with the process."""

    daemon_threads = True
    block_on_close = False
    hub: Hub

    def handle_error(self, request, client_address):
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """What both servers share: records, faults, ranges and broken connections."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # it would hold back each body for 40 ms, until headers are acked
    )
    name = ""

    def log_message(self, *words):
        """Requests are recorded, not printed."""

    def do_GET(self):
        self.handle_request()

    def do_HEAD(self):
        self.handle_request()

    def do_POST(self):
        self.handle_request()

    def handle_request(self):
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        record = Request(self.name, self.command, path, headers["Authorization"], headers["Range"])
        hub.requests.append(record)
        size = int(headers["Content-Length"] or 0)
        self.form = parse_qs(self.rfile.read(size).decode())
        self.query = parse_qs(urlsplit(self.path).query)
        fault = hub.next_fault(f"{self.command} {path}") or NO_FAULT
        if hub.closing.wait(fault.seconds):
            self.close_connection = True
        elif fault.status is not None:
            self.send(error(fault.status, None, "something is wrong", **fault.headers), NO_FAULT)
        else:
            self.send(self.answer(path), fault)

    def answer(self, path: str) -> Answer:
        raise NotImplementedError

    def send(self, answer: Answer, fault: Fault) -> None:
        """Write an answer; of a cut body only a part, though its length is told."""
        self.narrow(answer)
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.drip is not None:
            for i in range(len(answer.body)):
                if self.server.hub.closing.wait(fault.drip):
                    break
                self.wfile.write(answer.body[i : i + 1])
            return
        self.wfile.write(answer.body[: fault.cut])
        if fault.cut is not None:
            self.close_connection = True
        if fault.reset:
            linger = struct.pack("ii", 1, 0)  # unsent data is dropped and an error is sent
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def narrow(self, answer: Answer) -> None:
        """Leave the part of the body that a Range header asks for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if answer.status != 200 or match is None or self.command == "HEAD":
            return
        total = len(answer.body)
        first = int(match[1])
        last = min(int(match[2] or total - 1), total - 1)
        if first >= total:
            answer.status = 416
            answer.body = b""
            answer.headers["Content-Range"] = f"bytes */{total}"
            return
        answer.status = 206
        answer.body = answer.body[first : last + 1]
        answer.headers["Content-Range"] = f"bytes {first}-{last}/{total}"


class ContentHandler(Handler):
    """The content network: files by their sha256. It gives them to whoever has the link."""

    name = "content"

    def answer(self, path: str) -> Answer:
        for repository in self.server.hub.repositories.values():
            for files in repository.branches.values():
                for content in files.values():
                    if sha256_of(content) == path[1:]:
                        return Answer(200, content, {"ETag": f'"{path[1:]}"'})
        return error(403, None, "no such link")


class HubHandler(Handler):
    """The hub."""

    name = "hub"

    def answer(self, path: str) -> Answer:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token not in ("", ACCEPTED, STRANGER):
            return error(401, None, "Invalid credentials in Authorization header")
        for pattern, act in (
            (r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", self.information),
            (r"/api/(models|datasets)/([^/]+/[^/]+)/tree/(.+)", self.tree),
            (r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/(.+)", self.paths),
            (r"/api/resolve-cache/(models|datasets)/([^/]+/[^/]+)/(.+)", self.small_file),
            (r"/(datasets/|)([^/]+/[^/]+)/resolve/(.+)", self.file),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                return self.in_repository(match, act, token)
        return error(404, None, "Sorry, we can't find the page you are looking for.")

    def in_repository(self, match: re.Match, act, token: str) -> Answer:
        """Find repository and commit, check who asks, and let `act` answer."""
        kind = match[1].rstrip("/") or "models"
        repository = self.server.hub.repositories.get((kind, match[2]))
        if repository is None:
            if token:
                return error(404, "RepoNotFound", "Repository not found")
            # Without a token the hub does not tell whether there is such a repository.
            return error(401, "RepoNotFound", "Invalid username or password.")
        revision, rest = self.split(repository, match[3] or "main")
        sha = repository.commit(revision)
        if sha is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        is_file = act in (self.file, self.small_file)
        if repository.gated and is_file and token != ACCEPTED:
            return error(
                403 if token else 401,
                "GatedRepo",
                f"Access to model {repository.name} is restricted. You must have access to it and "
                "be authenticated to access it. Please log in.",
            )
        return act(repository, sha, rest)

    @staticmethod
    def split(repository: Repository, text: str) -> tuple[str, str]:
        """(revision, path) of "revision/path", where branches may have slashes in their names."""
        for branch in repository.branches:
            if text == branch or text.startswith(f"{branch}/"):
                return branch, text[len(branch) + 1 :]
        revision, _, rest = text.partition("/")
        return revision, rest

    def information(self, repository: Repository, sha: str, rest: str) -> Answer:
        if rest:
            return error(404, "RevisionNotFound", f"Invalid rev id: {rest}")
        siblings = [{"rfilename": path} for path in sorted(repository.files(sha))]
        return as_json(
            {
                "_id": sha1_of(repository.name)[:24],
                "id": repository.name,
                "author": repository.name.partition("/")[0],
                "sha": sha,
                "lastModified": "2025-05-21T06:25:20.000Z",
                "createdAt": "2025-04-28T07:59:47.000Z",
                "private": False,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 12,
                "likes": 3,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, repository: Repository, sha: str, folder: str) -> Answer:
        """A page of the folder's entries; a link leads to the next."""
        recursive = self.query.get("recursive", ["False"])[0].lower() in ("true", "1")
        entries = tree_of(repository.files(sha), folder, recursive)
        if folder and not entries:
            return error(404, "EntryNotFound", f"{folder} does not exist on {sha}")
        if self.query.get("expand", ["False"])[0].lower() in ("true", "1"):
            for entry in entries:
                entry["lastCommit"] = {
                    "id": sha,
                    "title": "Upload",
                    "date": "2025-05-21T06:25:20.000Z",
                }
        start = int(self.query.get("cursor", ["0"])[0])
        answer = as_json(entries[start : start + PAGE])
        if start + PAGE < len(entries):
            query = {"recursive": recursive, "cursor": start + PAGE}
            link = f"{self.server.hub.url}{urlsplit(self.path).path}?{urlencode(query)}"
            answer.headers["Link"] = f'<{link}>; rel="next"'
        return answer

    def paths(self, repository: Repository, sha: str, rest: str) -> Answer:
        """The entries of the paths in the request's form that are there."""
        entries = tree_of(repository.files(sha), "", recursive=True)
        asked = self.form.get("paths", [])
        return as_json([entry for entry in entries if entry["path"] in asked])

    def file(self, repository: Repository, sha: str, path: str) -> Answer:
        """Where a file is: every one is a redirect away."""
        content = repository.files(sha).get(path)
        if content is None:
            return error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(content))}
        if path.endswith(LARGE):
            digest = sha256_of(content)
            headers["X-Linked-ETag"] = f'"{digest}"'
            headers["Location"] = f"{self.server.hub.content_url}/{digest}"
            return Answer(302, b"Found", headers)
        headers["X-Linked-ETag"] = f'"{blob_of(content)}"'
        location = f"/api/resolve-cache/{repository.kind}/{repository.name}/{sha}/{path}"
        headers["Location"] = location
        return Answer(307, b"Temporary Redirect", headers)

    def small_file(self, repository: Repository, sha: str, path: str) -> Answer:
        content = repository.files(sha).get(path)
        if content is None:
            return error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        return Answer(200, content, {"X-Repo-Commit": sha, "ETag": f'"{blob_of(content)}"'})
