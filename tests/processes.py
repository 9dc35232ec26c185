"""Processes that train together, each as ``torchrun`` starts it.

They are forked from a server that has imported ``trainings`` and done nothing else: a process that has computed
gradients must not be forked.
"""

import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import pytest

TIMEOUT = 300  # seconds until processes that wait for each other are given up


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each of ``count`` processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("forkserver")
    context.set_forkserver_preload(["trainings"])
    answers = context.SimpleQueue()
    processes = [
        context.Process(target=_run, args=(answers, r, count, port, function, arguments)) for r in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, sys.path))
        )  # the server does not get the path otherwise
        for process in processes:
            process.start()
    for process in processes:
        process.join(TIMEOUT)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    results: dict[int, Any] = {}
    while not answers.empty():
        rank, result, problem = answers.get()
        assert problem is None, problem
        results[rank] = result
    assert not stuck, f"processes waited for each other; done: {sorted(results)}"
    assert len(results) == count, "a process died"
    return [results[rank] for rank in range(count)]


def _run(answers: Any, rank: int, world: int, port: int, function: Callable[..., Any], arguments: Any) -> None:
    """One process; what it sends must be small, because a pipe holds it."""
    warnings.simplefilter("ignore")
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in own.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"})
    try:
        answers.put((rank, function(*arguments), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()[-6000:]))
