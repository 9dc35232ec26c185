"""The parts of a table on a Ray cluster, by Ray Data; needs the extra "ray"."""

import importlib
import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import tsfm
from tsfm.inference.partitions.places import Part
from tsfm.inference.partitions.work import Work
from tsfm_data.errors import InputError, reason_of

PATIENCE = 5.0  # seconds for a first answer of a cluster; Ray itself would try for minutes
TRIES = 1  # more times that a part is given to another worker if its worker was killed
HOST = re.compile(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)")
LOST = "its worker was killed, perhaps for memory: make the part smaller, or the workers fewer"


def connect_ray(option: str = "--engine ray") -> Any:
    """The module ``ray``, connected to the cluster named by RAY_ADDRESS or to a new one on this machine.

    Args:
        option: the option that asks for it, for messages.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or it has another version.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"expected Ray for {option}, found none: pip install 'tsfm-suite[ray]'") from error
    if ray.is_initialized():
        return ray
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"a cluster at RAY_ADDRESS={address}" if address else "Ray on this machine"
    hint = "start it (ray start --head), correct RAY_ADDRESS, or unset it to work on this machine"
    if found := HOST.fullmatch(address):
        try:
            socket.create_connection((found[1], int(found[2])), PATIENCE).close()
        except OSError as error:
            raise InputError(f"expected {where}, found none ({error.strerror or error}): {hint}") from error
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        reason = reason_of(error, 300)
        if "mismatch" in reason:
            hint = "install the versions of the cluster here, or these there"
        raise InputError(f"expected {where} that can be used, found: {reason}: {hint}") from error
    return ray


class Worker:
    """An actor that has the work, with its model, once for all its parts.

    Args:
        work: what is done with each part.
        version: of this package, where the run was started.

    Raises:
        InputError: this package has another version here.
    """

    def __init__(self, work: Work, version: str) -> None:
        if version != tsfm.__version__:
            raise InputError(
                f"expected tsfm-suite {version} on all workers, found {tsfm.__version__}: install one version"
            )
        self.work = work

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the parts of a batch; parts and outcomes are JSON, one text each."""
        return {"outcome": [json.dumps(self.work.do(Part(**json.loads(text)))) for text in batch["part"]]}


def run_on_ray(work: Work, parts: list[Part], workers: int | None = None) -> Generator[dict[str, Any]]:
    """Do parts on the workers of a cluster, in the order in which they are finished.

    Args:
        work: what is done with each part; it is sent to each worker once.
        parts: the parts.
        workers: number of workers, one CPU each; by default one per CPU of the cluster.

    Raises:
        InputError: no cluster, one of another version, or workers that cannot start.
    """
    if not parts:
        return
    ray = connect_ray()
    data = importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is told by us, in one line
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a part whose worker is killed does not end the run
    context.execution_options.preserve_order = False
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(len(parts), cpus if workers is None else workers))
    if size > cpus:
        raise InputError(f"expected at most {cpus} workers, one per CPU of the cluster, found {size}: give fewer")
    rows = data.from_items([{"part": json.dumps(asdict(part))} for part in parts], override_num_blocks=len(parts))
    with warnings.catch_warnings(action="ignore"):  # of 2.64, which takes the number of tries in another way
        outcomes = rows.map_batches(
            Worker,
            batch_size=1,
            fn_constructor_args=(work, tsfm.__version__),
            compute=data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            ray_remote_args_fn=lambda: {"max_task_retries": TRIES},
        )
    left = {part.name: part for part in parts}
    try:
        for row in outcomes.iter_rows():
            outcome = json.loads(row["outcome"])
            del left[outcome["name"]]
            yield outcome
    except InputError:
        raise
    except Exception as error:  # Ray Data wraps what its workers raise in errors of several kinds
        raise InputError(f"expected workers that can start, found: {_cause(error)}") from error
    for part in left.values():
        yield {**asdict(part), "output": part.output, "state": "failed", "error": LOST}


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised: its traceback comes before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return reason_of(Exception((named or lines or [type(error).__name__])[-1]), 300)
