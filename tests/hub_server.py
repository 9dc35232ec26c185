"""A hub and a web server on this machine that misbehave on demand."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

COMMIT = "c" * 40


@dataclass
class Hub:
    """What is served and how.

    Attributes:
        files: path ("owner/name/file" of a repository, anything else as it is) -> content.
        url: of the server.
        status: answered instead of everything where it is not 200.
        error: X-Error-Code beside it.
        cut_after: bytes of a file's content after which the connection drops, once.
        damage: whether content is sent with another last byte than its hash says.
        redirect: path -> where it is answered to be.
        token: what must be sent as a bearer token.
        asked: method, path and Range header of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    status: int = 200
    error: str | None = None
    cut_after: int | None = None
    damage: bool = False
    redirect: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def gets(self) -> list[str]:
        """Paths whose content was asked for."""
        return [path for method, path, _ in self.asked if method == "GET" and "/api/" not in path]


@contextmanager
def serve(folder: Path | None = None) -> Iterator[Hub]:
    """A server on loopback; ``folder`` is served as it is, too."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self, status: int, code: str | None = None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self) -> None:
            path = self.path.split("?")[0].lstrip("/")
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if hub.status != 200:
                return self.refuse(hub.status, hub.error)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.refuse(401, "GatedRepo")
            if path in hub.redirect:
                self.send_response(302)
                self.send_header("Location", hub.redirect[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            if path.startswith("api/models/"):
                return self.whole(json.dumps({"id": "x", "sha": COMMIT, "siblings": []}).encode())
            if "/resolve/" in path:
                repo, _, rest = path.partition("/resolve/")
                revision, _, file = rest.partition("/")
                if not any(name.startswith(f"{repo}/") for name in hub.files):
                    return self.refuse(404, "RepoNotFound")
                if revision not in ("main", "v1", COMMIT):
                    return self.refuse(404, "RevisionNotFound")
                if f"{repo}/{file}" not in hub.files:
                    return self.refuse(404, "EntryNotFound")
                return self.whole(hub.files[f"{repo}/{file}"], large=file != "config.json")
            if path in hub.files:
                return self.whole(hub.files[path])
            if folder is not None and (folder / path).is_file():
                return self.whole((folder / path).read_bytes())
            return self.refuse(404)

        do_GET = do_HEAD = answer

        def whole(self, content: bytes, large: bool = False) -> None:
            asked = self.headers.get("Range")
            first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            etag = hashlib.sha256(content).hexdigest() if large else git
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - first))
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            body = content[first:]
            if hub.damage and large:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if hub.cut_after is not None and len(body) > hub.cut_after:
                body, hub.cut_after, self.close_connection = body[: hub.cut_after], None, True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        hub.url = f"http://127.0.0.1:{web.server_port}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        web.shutdown()
        thread.join()
