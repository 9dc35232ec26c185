"""Damaged files read by the product's own readers in child processes, and what each of them ends in."""

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from mutation import mutate

from tsfm_data.errors import InputError
from tsfm_data.io import atomic_folder

ENDINGS = ("read", "refused", "exception", "crash", "hang", "over memory")
RIGHT = ENDINGS[:2]
MIB = 1 << 20
IDLE = 10  # how many times the seconds of CPU time an input may take in all, on a busy machine
TIMERS = (signal.SIGPROF, signal.SIGALRM)  # of CPU time, and of all time
LOG, CURRENT, OUTPUT, DEFECT = "log.jsonl", "current", "output.txt", "defect.txt"  # files in the folder of a child


@dataclass(frozen=True)
class Target:
    """A reader to try.

    Attributes:
        kind: its name.
        seeds: writes valid files into a folder and returns those to damage; other files there stay as they are.
        read: reads one file. A value and an ``InputError`` are right, anything else is a failure.
    """

    kind: str
    seeds: Callable[[Path], list[Path]]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Limits:
    """Seconds of CPU time (ten times as many in all), and MiB beyond those of the process, that one input may take."""

    seconds: float = 20
    memory: int = 1024


@dataclass
class Part:
    """Inputs ``start`` to ``stop`` of one kind, in one child process.

    Attributes:
        done: endings of the inputs so far.
        slowest: CPU seconds of the slowest input.
        memory: the most MiB that the process took beyond those of its beginning.
    """

    kind: str
    start: int
    stop: int
    done: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: float = 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Count one input."""
        self.done[line["ending"]] += 1
        self.slowest = max(self.slowest, line["seconds"])
        self.memory = max(self.memory, line["memory"])


def try_parts(
    targets: list[Target], parts: list[Part], folder: Path, seed: int, limits: Limits, workers: int = 1
) -> Iterator[Part]:
    """Try all parts, several at a time, and yield each when it is done.

    Args:
        targets: the readers of the parts.
        parts: what to try; an input depends only on the seed, its kind and its number.
        folder: for the files; every failure is kept in its ``failures``, with what was raised.
        seed: of the random numbers.
        limits: of each input.
        workers: child processes at a time.
    """
    readers = {target.kind: target for target in targets}
    (folder / "failures").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "seeds", ignore_errors=True)
    waiting, running = list(reversed(parts)), dict[int, tuple[Part, Path]]()
    free = [folder / f"worker{number}" for number in range(workers)]
    while waiting or running:
        while waiting and free:
            part, place = waiting.pop(), free.pop()
            running[_forked(place, _try_all, readers[part.kind], part, place, seed, limits)] = (part, place)
        number, status = _ended(list(running))
        part, place = running.pop(number)
        free.append(place)
        _collect(part, place, status, limits)
        if part.done.total() == part.stop - part.start:
            yield part
        else:
            waiting.append(part)


def _ended(numbers: list[int]) -> tuple[int, int]:
    """Wait for one of these child processes; returns its number and status."""
    while True:
        for number in numbers:
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                return number, status
        time.sleep(0.01)


def ending_of(target: Target, path: Path, place: Path, limits: Limits) -> tuple[str, str]:
    """What reading one file in a child process ends in, and what was raised.

    Args:
        target: the reader.
        path: the file, as it is.
        place: a folder for the child.
        limits: of the file.
    """
    _, status = os.waitpid(_forked(place, _try_one, target, path, place, limits), 0)
    killed = _killed(status, place, limits)
    line = killed or json.loads((place / LOG).read_text())
    return line["ending"], line["said"]


def _forked(place: Path, work: Callable[..., None], *given: object) -> int:
    """Start a child process with an empty folder that does some work; returns its number."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads exist, but hold no lock that a child needs
        number = os.fork()
    if number:
        return number
    status = 1
    try:
        os.environ["TSFM_CACHE"] = str(place / "cache")
        output = os.open(place / OUTPUT, os.O_WRONLY | os.O_CREAT)  # C libraries write there when they die
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable(output)
        work(*given)
        status = 0
    except BaseException:
        (place / DEFECT).write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _try_one(target: Target, path: Path, place: Path, limits: Limits) -> None:
    (place / CURRENT).write_text(str(path))
    begin = _bound(limits)
    line = _line(target, path, begin, limits)
    (place / LOG).write_text(json.dumps(line))


def _try_all(target: Target, part: Part, place: Path, seed: int, limits: Limits) -> None:
    """Try the inputs of a part that are not done, up to one that takes too much memory."""
    originals = [(path, path.read_bytes()) for path in _seeds(target, place)]
    begin = _bound(limits)
    with (place / LOG).open("w") as log:
        for number in range(part.start + part.done.total(), part.stop):
            rng = random.Random(f"{seed} {part.kind} {number}")
            path, data = rng.choice(originals)
            (place / CURRENT).write_text("")
            try:
                path.write_bytes(mutate(path.name, data, rng))
            except MemoryError:
                if log.tell():
                    return  # what earlier inputs left behind; a fresh process goes on
                raise
            (place / CURRENT).write_text(str(path))
            line = _line(target, path, begin, limits)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if line["ending"] not in RIGHT:
                _keep(part, number, path, place, line)
            if line["ending"] == "over memory":
                return
            path.write_bytes(data)


def _bound(limits: Limits) -> float:
    """Bound the memory of this process; returns the MiB that it has taken so far."""
    pa.allocate_buffer(1)  # Arrow's own pool reserves far more addresses than it uses: that now, and no more of them
    pa.set_memory_pool(pa.system_memory_pool())
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limits.memory * MIB,) * 2)
    for number in TIMERS:
        signal.signal(number, signal.SIG_DFL)  # ends the process, which no reader can catch
    warnings.simplefilter("error")
    return _peak()


def _seeds(target: Target, place: Path) -> list[Path]:
    """The seeds of a target in a child's own folder; the first child of a kind writes them."""
    common, names = place.parent / "seeds" / target.kind, "names.json"
    if not common.exists():
        with atomic_folder(common) as made:
            paths = target.seeds(made)
            (made / names).write_text(json.dumps([str(path.relative_to(made)) for path in paths]))
    shutil.copytree(common, place / "seeds")
    return [place / "seeds" / name for name in json.loads((common / names).read_text())]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _line(target: Target, path: Path, begin: float, limits: Limits) -> dict[str, Any]:
    """What reading a file ends in, what was raised, its seconds, and the most MiB so far."""
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    signal.setitimer(signal.ITIMER_REAL, IDLE * limits.seconds)
    started = time.process_time()
    ending, said = _ending(target.read, path)
    seconds = time.process_time() - started
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    memory = _peak() - begin
    if memory > limits.memory:
        ending, said = "over memory", f"{memory:.0f} MiB"
    return {"ending": ending, "said": said, "seconds": seconds, "memory": memory}


def _ending(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    try:
        read(path)
        return "read", ""
    except InputError as error:
        return ("refused", "") if str(error).strip() else ("exception", "an InputError without a message")
    except MemoryError:
        return "over memory", traceback.format_exc()
    except BaseException:
        return "exception", traceback.format_exc()


def _killed(status: int, place: Path, limits: Limits) -> dict[str, Any] | None:
    """The ending of a child that a signal ended; None if it ended by itself."""
    if (place / DEFECT).exists():
        raise RuntimeError(f"the harness itself failed: {(place / DEFECT).read_text()}")
    if not os.WIFSIGNALED(status):
        return None
    killed = signal.Signals(os.WTERMSIG(status))
    said = f"{killed.name}\n" + (place / OUTPUT).read_text(errors="replace")[-2000:]
    hang = killed in TIMERS
    return {"ending": "hang" if hang else "crash", "said": said, "seconds": limits.seconds * hang, "memory": 0.0}


def _collect(part: Part, place: Path, status: int, limits: Limits) -> None:
    """Count the inputs of a child that ended."""
    killed = _killed(status, place, limits)
    lines = [json.loads(line) for line in (place / LOG).read_text().splitlines()] if (place / LOG).exists() else []
    if killed is not None:
        number = part.start + part.done.total() + len(lines)
        path = (place / CURRENT).read_text()
        if not path:
            raise RuntimeError(f"damaging input {number} of {part.kind} ended the process: {killed['said']}")
        _keep(part, number, Path(path), place, killed)
        lines.append(killed)
    for line in lines:
        part.add(line)


def _keep(part: Part, number: int, path: Path, place: Path, line: dict[str, Any]) -> None:
    """Keep the file of a failure, and what was raised."""
    kept = place.parent / "failures" / f"{part.kind}_{line['ending'].replace(' ', '_')}_{number}_{path.name}"
    shutil.copy(path, kept)
    kept.with_name(f"{kept.name}.said").write_text(line["said"])
