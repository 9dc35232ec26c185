"""Parts on a Ray cluster of two workers: as on one machine, whatever happens to a worker."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command import run

import tsfm
from tsfm import inference
from tsfm.inference.partitions import places, ray_data
from tsfm_data import io
from tsfm_data.errors import InputError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings, about its next versions
WORDS = ("--horizon", "2", "--model", "seasonal-naive", "--output", "out", "--engine", "ray", "--workers", "2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs on this machine."""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with six parts of two series each."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sales"
    folder.mkdir()
    for k in range(6):
        days = pd.date_range("2024-01-01", periods=20)
        values = np.random.default_rng(k).normal(size=40)
        ids = np.repeat([f"s{k}a", f"s{k}b"], 20)
        frame = pd.DataFrame({"item_id": ids, "timestamp": np.tile(days, 2), "target": values})
        frame.to_parquet(folder / f"p{k}.parquet", index=False)
    return folder


def whole(sales: Path) -> pd.DataFrame:
    table = pd.read_parquet(sorted(sales.iterdir()))
    return tsfm.load("seasonal-naive").forecast(table, horizon=2)


def parts(folder: str = "out") -> dict[str, Any]:
    return json.loads((Path(folder) / "manifest.json").read_text())["parts"]


def answer(series: io.SeriesSet, dies_at: str = "", log: str = "") -> pd.DataFrame:
    """One row per series, from a worker that dies at one of them and notes each of its calls."""
    if log:
        with Path(log).open("a") as file:
            file.write(f"{series.item_ids[0]}\n")
    if dies_at in series.item_ids:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return pd.DataFrame({"item_id": series.item_ids, "worker": os.getpid()})


def test_two_workers_give_the_forecast_of_the_whole_table(
    cluster: Any, sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sales / "bad.csv").write_text("name,value\nx,1\n")
    said = run(capsys, "forecast", "sales", *WORDS)
    assert said.status == 1, said.err
    assert "6 of 7 parts done, 12 series, 24 rows" in said.out
    assert [line[:15] for line in said.err.splitlines()] == ["error: bad.csv:"]
    (sales / "bad.csv").unlink()
    found = pd.read_parquet(sorted(Path("out").glob("[!.]*.parquet")))
    pd.testing.assert_frame_equal(found, whole(sales), check_dtype=False)
    said = run(capsys, "forecast", "sales", *WORDS[:-4])
    assert "6 of 6 parts done (6 of them before)" in said.out  # another engine goes on


def test_the_model_is_sent_once_to_each_worker(cluster: Any, sales: Path) -> None:
    done = inference.run_parts("sales", {}, inference.Work(answer, {}, "out"), inference.run_on_ray, 2)
    rows = pd.read_parquet(sorted(Path("out").glob("[!.]*.parquet")))
    assert len(rows) == 12
    assert rows["worker"].nunique() == 2
    assert {part["worker"].split(":")[1] for part in done.those("done")} == set(rows["worker"].astype(str))


def test_a_part_that_kills_its_worker_fails_alone(cluster: Any, sales: Path) -> None:
    told: list[str] = []
    work = inference.Work(functools.partial(answer, dies_at="s3a"), {}, "out")
    done = inference.run_parts("sales", {}, work, inference.run_on_ray, 2, tell=told.append)
    assert told == [f"p3.parquet: {ray_data.LOST}"]
    assert len(done.those("done")) == 5
    told.clear()
    work = inference.Work(functools.partial(answer, log=str(sales.parent / "log")), {}, "out")
    assert len(inference.run_parts("sales", {}, work, inference.run_on_ray, 2, tell=told.append).those("done")) == 6
    assert Path("log").read_text() == "s3a\n"


def test_a_killed_run_does_not_repeat_finished_parts(sales: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import functools, sys; from tsfm import inference; from test_ray import answer\n"
        f"work = inference.Work(functools.partial(answer, log={str(log)!r}), {{}}, 'out')\n"
        "inference.run_parts('sales', {}, work, inference.run_on_ray, 2)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(Path("out").glob("[!.]*.parquet"))) < 2:
            time.sleep(0.02)
        process.kill()
    time.sleep(2)  # its workers end, too
    finished = {path.name.split("-")[0] for path in Path("out").glob("[!.]*.parquet")}
    assert 2 <= len(finished) < 6
    log.unlink()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stderr=subprocess.DEVNULL)
    assert {part["state"] for part in parts().values()} == {"done"}
    again = {f"p{line[1]}" for line in log.read_text().split()}
    assert again == {f"p{k}" for k in range(6)} - finished


def test_another_version_of_the_package_on_the_workers_is_one_line(
    cluster: Any, sales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data.tsfm, "__version__", "0.0.0")
    with pytest.raises(InputError, match=r"expected tsfm-suite 0\.0\.0 on all workers, found \d") as error:
        inference.run_parts("sales", {}, inference.Work(answer, {}, "out"), inference.run_on_ray, 2)
    assert "\n" not in str(error.value)


def test_more_workers_than_cpus_are_one_line(cluster: Any, sales: Path) -> None:
    with pytest.raises(InputError, match="expected at most 2 workers"):
        inference.run_parts("sales", {}, inference.Work(answer, {}, "out"), inference.run_on_ray, 5)


def test_another_version_of_ray_in_the_cluster_is_one_line(
    cluster: Any, sales: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = ray.get_runtime_context().gcs_address
    code = (
        "import ray; ray.__version__ = '0.0.1'\n"
        "from tsfm.commands.cli import main\n"
        f"main({['forecast', 'sales', *WORDS]})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tsfm: error: ")]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert "ersion mismatch" in lines[0]
    assert "0.0.1" in lines[0]
    assert "install the versions of the cluster here" in lines[0]


def test_no_cluster_at_the_address_is_one_line(
    sales: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
    begin = time.monotonic()
    said = run(capsys, "forecast", "sales", *WORDS)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "expected a cluster at RAY_ADDRESS=127.0.0.1:" in said.err
    assert "Connection refused" in said.err
    assert time.monotonic() - begin < 30
    assert {part["state"] for part in parts().values()} == {"waiting"}


def test_parts_are_sent_as_plain_text() -> None:
    part = places.Part("a.csv", "/a.csv", 3, "x")
    assert places.Part(**json.loads(json.dumps(part.__dict__))) == part
