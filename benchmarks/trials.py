"""Commands in processes forked from one that has imported everything, so that a trial takes its work, not its start."""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.005  # seconds
PATIENCE = 15.0  # seconds until the processes that a killed command started must have ended


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: exit status, or minus the number of the signal that killed it.
        out: what it printed.
        err: what it printed on standard error.
        seconds: how long it ran.
    """

    status: int
    out: str
    err: str
    seconds: float


@dataclass
class Trial:
    """A running command; its session holds all processes that it starts.

    Attributes:
        process: its id, which is also that of the session.
        folder: where it runs.
        started: time at its start.
        files: what it prints goes here.
    """

    process: int
    folder: Path
    files: tuple[Path, Path]
    started: float = field(default_factory=time.perf_counter)

    def kill(self, number: int) -> None:
        """Send a signal to the command alone, as a process manager does."""
        with suppress(ProcessLookupError):
            os.kill(self.process, number)

    def wait(self, seconds: float = 600.0) -> Ended:
        """Wait until it has ended; after too many seconds it is killed.

        Raises:
            TimeoutError: it did not end by itself.
        """
        end = time.perf_counter() + seconds
        while (done := os.waitpid(self.process, os.WNOHANG))[0] == 0:
            if time.perf_counter() > end:
                os.killpg(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                raise TimeoutError(f"still running after {seconds:g} s in {self.folder}")
            time.sleep(POLL)
        out, err = (file.read_text(errors="replace") if file.is_file() else "" for file in self.files)
        return Ended(os.waitstatus_to_exitcode(done[1]), out, err, time.perf_counter() - self.started)

    def survivors(self) -> list[int]:
        """Processes of the session that still run some seconds after the command ended; they are killed."""
        end = time.perf_counter() + PATIENCE
        while (alive := session(self.process)) and time.perf_counter() < end:
            time.sleep(POLL)
        for process in alive:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return alive


def session(leader: int) -> list[int]:
    """Running processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == leader and state != "Z":
                found.append(int(entry.name))
    return found


def start(
    words: Sequence[str],
    folder: Path,
    before: Callable[[], object] = lambda: None,
    out: Path | None = None,
    entry: Callable[[Sequence[str]], object] | None = None,
    own_session: bool = True,
    err: Path | None = None,
) -> Trial:
    """Start a command in a forked process.

    Args:
        words: the command line without ``tsfm``.
        folder: where it runs.
        before: called in the new process first.
        out: file of its standard output; by default next to ``folder``.
        entry: called with the words; by default the command line ``tsfm``.
        own_session: false for a process that belongs to the session of this one.
        err: file of its standard error; by default next to ``folder``.
    """
    files = (out or folder.with_name(f"{folder.name}.out"), err or folder.with_name(f"{folder.name}.err"))
    sys.stdout.flush()
    sys.stderr.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the command can handle them
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return Trial(process, folder, files)
    try:
        if own_session:
            os.setsid()
        os.chdir(folder)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os._exit(_called(words, before, entry))
    finally:
        os._exit(1)


def _called(words: Sequence[str], before: Callable[[], object], entry: Callable[[Sequence[str]], object] | None) -> int:
    """Call the command as Python does; returns its exit status."""
    from tsfm.commands import cli

    dispatch = cli.dispatch

    def unblocked(words: list[str]) -> int:
        """Take signals from here on, where the command line handles them; before, nothing has begun."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return dispatch(words)

    cli.dispatch = unblocked
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["tsfm", *words]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before()
        if entry is not None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        (entry or cli.main)(words)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120  # as at the end of Python
    return status


def run_and_import(words: Sequence[str], folder: Path, before: Callable[[], object] = lambda: None) -> Ended:
    """Run a command, and import in this process what it imported, so that the next run need not."""
    names = folder.with_name(f"{folder.name}.modules")

    def watched(words: Sequence[str]) -> None:
        from tsfm.commands.cli import main

        try:
            main(words)
        finally:
            names.write_text("\n".join(sys.modules))

    ended = start(words, folder, before, entry=watched).wait()
    for name in names.read_text().split() if names.is_file() else ():
        if name not in sys.modules and "__main__" not in name:
            with suppress(Exception):  # modules of optional parts
                importlib.import_module(name)
    return ended
