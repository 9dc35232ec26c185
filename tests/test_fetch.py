"""Files are found, transferred whole, verified and resumed, against a server that misbehaves on demand."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tsfm_data.errors import InputError
from tsfm_data.io import download as module
from tsfm_data.io.download import cache_folder, fetch

CONTENT = np.random.default_rng(7).integers(0, 256, 3_000_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(CONTENT).hexdigest()
BLOB = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()


@dataclass
class Server:
    """A web server on this machine and how it shall behave."""

    url: str = ""
    content: bytes = CONTENT
    cut_after: int | None = None  # bytes of a body before the connection drops
    cuts: int = 0  # so many answers are cut
    status: int = 200
    failures: int = 0  # so many answers have ``status``; -1 for all
    ranges: bool = True
    silent: float = 0.0  # seconds before an answer
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()
    wake = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.silent:
                wake.wait(state.silent)
            if state.failures:
                state.failures -= 1
                self.send_error(state.status)
                return
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if first >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[first:]
            self.send_response(206 if asked and state.ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {first}-{len(state.content) - 1}/{len(state.content)}")
            self.end_headers()
            if state.cuts and state.cut_after is not None:
                state.cuts -= 1
                body = body[: state.cut_after]
            try:
                self.wfile.write(body)
            except OSError:
                return  # the client gave up

        def log_message(self, *args: object) -> None:
            pass

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        state.url = f"http://127.0.0.1:{web.server_port}/big.bin"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        wake.set()
        web.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TSFM_DATA", raising=False)
    monkeypatch.setattr(module, "PAUSE", 0.001)


def test_a_file_is_transferred_verified_and_then_kept(server: Server) -> None:
    path = fetch("weights/big.bin", url=server.url, sha256=SHA)
    assert path == cache_folder() / "weights/big.bin"
    assert path.read_bytes() == CONTENT
    assert fetch("weights/big.bin", url=server.url, sha256=SHA) == path
    assert fetch("weights/big.bin", url=None, sha256=SHA, git_blob=BLOB) == path
    assert server.asked == [None]
    assert sorted(p.name for p in path.parent.iterdir()) == ["big.bin", "big.bin.lock"]


def test_when_the_connection_drops_then_the_transfer_resumes(server: Server) -> None:
    server.cut_after, server.cuts = 1_200_000, 2
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT
    assert server.asked[0] is None
    starts = [int(str(asked).removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1] < len(CONTENT)


def test_when_all_attempts_fail_then_the_next_call_goes_on_from_there(server: Server) -> None:
    server.cut_after, server.cuts = 300_000, module.ATTEMPTS
    with pytest.raises(InputError, match=r"interrupted .*4 attempts; [\d,]+ bytes are kept, run again") as caught:
        fetch("big.bin", url=server.url, sha256=SHA)
    assert "\n" not in str(caught.value)
    assert not (cache_folder() / "big.bin").exists()
    kept = (cache_folder() / "big.bin.part").stat().st_size
    assert kept > 0
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={kept}-"


def test_when_the_server_ignores_ranges_then_the_transfer_starts_anew(server: Server) -> None:
    server.ranges, server.cut_after, server.cuts = False, 1_000_000, 1
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT
    assert server.asked[1] is not None


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_when_the_part_is_already_whole_or_too_long_then_it_is_settled(server: Server, part: bytes) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "big.bin.part").write_bytes(part)
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT


def test_when_no_digest_is_known_then_nothing_is_resumed(server: Server) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "big.bin.part").write_bytes(b"of another version")
    assert fetch("big.bin", url=server.url, sha256=None).read_bytes() == CONTENT
    assert server.asked == [None]


def test_wrong_content_is_refused_and_removed(server: Server) -> None:
    server.content = b"<html>sign in first</html>"
    found = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(InputError, match=f"expected sha256 {SHA}, found {found}"):
        fetch("big.bin", url=server.url, sha256=SHA)
    assert [p.name for p in cache_folder().iterdir()] == ["big.bin.lock"]
    with pytest.raises(InputError, match=f"expected git blob {BLOB}"):
        fetch("big.bin", url=server.url, sha256=None, git_blob=BLOB)


def test_a_damaged_cached_copy_is_fetched_again_or_refused(server: Server) -> None:
    path = fetch("big.bin", url=server.url, sha256=SHA)
    path.write_bytes(b"damaged")
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=f"expected sha256 {SHA}"):
        fetch("big.bin", url=None, sha256=SHA)
    assert not path.exists()


def test_server_errors_are_tried_again_and_missing_files_are_not(server: Server) -> None:
    server.status, server.failures = 500, 2
    assert fetch("big.bin", url=server.url, sha256=SHA).read_bytes() == CONTENT
    assert len(server.asked) == 3
    server.failures = -1
    with pytest.raises(InputError, match="the server answered 500 Internal Server Error, 4 attempts"):
        fetch("other.bin", url=server.url, sha256=SHA)
    server.status, before = 404, len(server.asked)
    with pytest.raises(InputError, match=r"big\.bin: expected the file, the server answered 404 Not Found"):
        fetch("other.bin", url=server.url, sha256=SHA)
    assert len(server.asked) == before + 1


def test_a_silent_server_and_an_absent_one_are_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.05)
    server.silent = 5.0
    with pytest.raises(InputError, match=r"no answer within 0\.05 s, 4 attempts"):
        fetch("big.bin", url=server.url, sha256=SHA)
    with pytest.raises(InputError, match=r"the download was interrupted .*4 attempts"):
        fetch("big.bin", url="http://127.0.0.1:9/big.bin", sha256=SHA)


def test_the_named_folder_is_searched_first_and_never_changed(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mirror"
    (folder / "bench").mkdir(parents=True)
    monkeypatch.setenv("TSFM_DATA", str(folder))
    for place in (folder / "bench/big.bin", folder / "big.bin"):
        place.write_bytes(CONTENT)
        assert fetch("bench/big.bin", url=server.url, sha256=SHA) == place
        place.write_bytes(b"another version")
        with pytest.raises(InputError, match="another version: replace it"):
            fetch("bench/big.bin", url=server.url, sha256=SHA)
        assert place.read_bytes() == b"another version"
        place.unlink()
    assert server.asked == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other/big.bin").write_bytes(CONTENT)
    assert fetch("big.bin", url=None, sha256=SHA, folder=tmp_path / "other") == tmp_path / "other/big.bin"
    with pytest.raises(InputError, match=r"is not available and has no URL; put it into the folder .*mirror"):
        fetch("bench/big.bin", url=None, sha256=SHA)


def test_file_urls_are_read_and_other_schemes_refused(tmp_path: Path) -> None:
    (tmp_path / "with space.bin").write_bytes(CONTENT)
    url = (tmp_path / "with space.bin").as_uri()
    assert fetch("big.bin", url=url, sha256=SHA).read_bytes() == CONTENT
    with pytest.raises(InputError, match="No such file"):
        fetch("none.bin", url=(tmp_path / "none.bin").as_uri(), sha256=SHA)
    for bad in ("ftp://host/big.bin", "big.bin"):
        with pytest.raises(InputError, match="expected an http, https or file URL"):
            fetch("none.bin", url=bad, sha256=SHA)
    for name in ("../big.bin", "/big.bin"):
        with pytest.raises(InputError, match="relative file name"):
            fetch(name, url=url, sha256=SHA)


def test_a_disk_that_cannot_be_written_is_one_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(InputError, match=r"big.bin: cannot be written, the disk is full.*TSFM_CACHE"):
        fetch("big.bin", url=server.url, sha256=SHA)
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(InputError, match="cannot be written"):
        fetch("big.bin", url=server.url, sha256=SHA)


def test_two_processes_at_once_share_one_transfer(server: Server) -> None:
    server.silent = 0.3
    code = (
        "import sys; from tsfm_data.io.download import fetch; "
        "print(fetch('big.bin', url=sys.argv[1], sha256=sys.argv[2]))"
    )
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.url, SHA], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs == [str(cache_folder() / "big.bin")] * 2
    assert Path(outputs[0]).read_bytes() == CONTENT
    assert len(server.asked) == 1
