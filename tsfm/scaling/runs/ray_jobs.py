"""Runs cells of a sweep on a Ray cluster whose machines share a file system; needs the extra "ray"."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsfm.inference import connect_ray


class RayJob:
    """A cell that runs on a Ray cluster."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def poll(self) -> int | None:
        """Exit status, or None while it runs; 1 if its worker was lost."""
        ray = connect_ray("--backend ray")
        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(self.reference))
        except ray.exceptions.RayError:
            return 1

    def terminate(self) -> None:
        """End the job."""
        connect_ray("--backend ray").cancel(self.reference, force=True)

    kill = terminate


def start_ray(command: Sequence[str], log: Path) -> RayJob:
    """Start a cell on one CPU of the cluster."""
    job = connect_ray("--backend ray").remote(num_cpus=1, max_retries=0)(run_command)
    return RayJob(job.remote(list(command), str(log.resolve()), os.getcwd()))


def run_command(command: list[str], log: str, folder: str) -> int:
    """Run the command line of a cell with one thread; returns its exit status."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "a") as handle:
        return subprocess.run(
            command, stdout=handle, stderr=subprocess.STDOUT, env=environment, cwd=folder, check=False
        ).returncode
