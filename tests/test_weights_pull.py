"""Models are pulled by name, verified, kept, mirrored and found offline, from a hub that misbehaves on demand."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command import done, run, waves
from hub_server import COMMIT, Hub, serve
from huggingface_hub import constants
from safetensors.torch import save

from tsfm.inference.predictors import load_predictor
from tsfm.models.chronos_bolt import ChronosBolt, ChronosBoltConfig
from tsfm.models.registry import model_class
from tsfm.weights import registry
from tsfm.weights.download import pull
from tsfm.weights.folders import Origin, verify, write_checksums
from tsfm.weights.pretrained import load
from tsfm.weights.registry import Entry
from tsfm_data.errors import InputError
from tsfm_data.io import download as fetch

SIZES = ChronosBoltConfig(8, 16, 4, 2, 1, 1)
FILES = ("config.json", "model.safetensors")
BOLT = Entry("toy", "forecast", "chronos-bolt", None, "apache-2.0", repo="owner/toy", files=FILES)


def published(seed: int = 0) -> dict[str, bytes]:
    """The files of a small Chronos-Bolt as they are published."""
    torch.manual_seed(seed)
    state = {key: value.contiguous() for key, value in ChronosBolt(64, 16, SIZES).state_dict().items()}
    sizes = asdict(SIZES)
    own = {"context_length": 64, "prediction_length": 16, "input_patch_size": 16, "input_patch_stride": 16}
    config = {
        "architectures": ["ChronosBoltModelForForecasting"],
        "chronos_config": own | {"quantiles": list(SIZES.levels), "use_reg_token": True},
        **{key: sizes[key] for key in ("d_model", "d_ff", "d_kv")},
        "num_heads": 2,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": SIZES.buckets,
        "relative_attention_max_distance": SIZES.max_distance,
    }
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(state)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TSFM_DATA", raising=False)
    monkeypatch.delenv("TSFM_MIRROR", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    # The client's notice of a second attempt goes to the standard error of the test that came first.
    monkeypatch.setattr(logging.getLogger("huggingface_hub.utils._http"), "disabled", True)
    toys = {
        "toy": BOLT,
        "closed": Entry("closed", "forecast", "chronos-bolt", None, "cc-by-nc-4.0", repo="owner/toy", files=FILES),
        "absent": Entry("absent", "forecast", "chronos-bolt", None, "mit", repo="owner/absent", files=FILES),
        "sourceless": Entry("sourceless", "image", "BiFormer", None, "mit", note="the links are dead"),
    }
    monkeypatch.setattr(registry, "published", lambda: toys)
    with serve(tmp_path / "served") as server:
        server.files = {f"owner/toy/{name}": content for name, content in published().items()}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def left(folder: Path) -> list[str]:
    """What a failed pull leaves where models are looked for."""
    weights = folder / "cache/weights"
    return [path.name for path in weights.iterdir() if path.suffix != ".lock"] if weights.exists() else []


def test_when_a_model_is_pulled_then_its_name_forecasts_and_nothing_is_fetched_twice(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "use it as --model toy" in done(capsys, "weights", "pull", "toy")
    folder = tmp_path / "cache/weights/toy"
    (found,) = verify(folder)
    assert found.compared == 3
    assert found.origin is not None
    assert (found.origin.revision, found.origin.source) == (COMMIT, "hub:owner/toy@main")
    torch.manual_seed(0)
    expected = ChronosBolt(64, 16, SIZES).state_dict()
    state = load("toy").state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert len(hub.gets) == 2
    waves(60, 1).to_csv(tmp_path / "t.csv", index=False)
    out = str(tmp_path / "f.csv")
    done(capsys, "forecast", str(tmp_path / "t.csv"), "--horizon", "3", "--model", "toy", "--output", out)
    before = len(hub.asked)
    pull("toy")
    assert len(hub.asked) == before
    # Another revision lies beside it; offline, what the client's cache has is enough.
    assert pull("toy", revision="v1").name == "toy@v1"
    assert load_predictor("toy@v1").context == 64
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for path in (folder / "checksums.json", folder / "model.safetensors"):
        path.unlink()
    assert verify(pull("toy"))[0].compared == 3


def test_when_the_connection_drops_then_the_transfer_goes_on_where_it_stopped(hub: Hub) -> None:
    hub.cut_after = 4000
    assert verify(pull("toy"))[0].compared == 3
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("safetensors")]
    assert ranges[-1] is None or ranges[-1].startswith("bytes=")
    assert len(ranges) >= 2


@pytest.mark.parametrize(
    ("change", "name", "parts"),
    [
        ({"status": 500}, "toy", ("owner/toy", "500")),
        ({"status": 401}, "toy", ("owner/toy", "HF_TOKEN")),
        ({"token": "secret"}, "toy", ("gated", "HF_TOKEN")),
        ({"damage": True}, "toy", ("expected sha256", "found")),
        ({}, "absent", ("repository owner/absent", "none that you may read")),
        ({}, "sourceless", ("no source is known, the links are dead",)),
        ({}, "closed", ("cc-by-nc-4.0, which forbids commercial use", "--accept-licence")),
        ({}, "toi", ("did you mean toy?",)),
        ({"files": {"owner/toy/config.json": b"{}"}}, "toy", ("model.safetensors of owner/toy", "no such file")),
    ],
    ids=["500", "401", "gated", "damaged", "absent", "sourceless", "licence", "unknown", "no file"],
)
def test_when_a_pull_fails_then_one_line_says_why_and_nothing_is_left(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, name: str, parts: tuple[str, ...]
) -> None:
    for key, value in change.items():
        setattr(hub, key, value)
    result = run(capsys, "weights", "pull", name)
    assert (result.status, result.err.count("\n")) == (2, 1), result.err
    assert len(result.err) < 500
    for part in parts:
        assert part in result.err
    assert left(tmp_path) == []


def test_when_a_token_is_set_or_a_licence_accepted_then_the_model_is_pulled(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "license: cc-by-nc-4.0" in (pull("closed", accept_licence=True) / "README.md").read_text()
    with pytest.raises(InputError, match="expected the revision nosuch of owner/toy"):
        pull("toy", revision="nosuch")


def test_when_offline_and_never_fetched_then_it_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        pull("toy")
    assert hub.asked == []


def test_when_the_disk_is_full_or_the_user_stops_it_then_nothing_is_left(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = (
        (OSError(28, "No space left on device"), InputError, "disk is full"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    )
    for error, expected, reason in cases:

        def fail(*args: object, error: BaseException = error, **options: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("tsfm.weights.pretrained.save_file", fail)
            with pytest.raises(expected, match=reason):
                pull("toy")
        assert left(tmp_path) == []


def test_when_a_model_is_mirrored_then_it_works_without_network_and_damage_is_found(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served"
    done(capsys, "weights", "mirror", "toy", str(served))
    assert "match their checksums" in done(capsys, "weights", "verify", str(served))
    assert load_predictor(str(served / "toy")).context == 64
    hub.files = {}
    for place in (str(served), served.as_uri(), hub.url):
        monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "empty" / str(len(place))))
        assert pull("toy", mirror=place).name == "toy"
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "cache2"))
    weights = served / "toy/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"!")
    for words in (("verify", str(served)), ("pull", "toy", "--mirror", hub.url)):
        result = run(capsys, "weights", *words)
        assert result.status == 2
        assert "sha256" in result.err.lower().replace("-", "")
    weights.write_bytes(content + b"more")
    with pytest.raises(InputError, match=r"expected [\d,]+ bytes, the server sends more"):
        pull("toy", mirror=hub.url)
    sums = served / "toy/checksums.json"
    sums.write_text(sums.read_text().replace("README.md", "../../README.md"))
    with pytest.raises(InputError, match=r"found '../../README.md': it was not followed"):
        pull("toy", mirror=served.as_uri())
    assert not (tmp_path / "cache2/weights/toy").exists()


def test_when_a_url_redirects_then_it_is_followed_and_a_login_page_is_not_taken_for_weights(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Entry("toy", "image", "PoolFormer", None, "mit", url=f"{hub.url}/moved.pth.tar")
    monkeypatch.setattr(registry, "published", lambda: {"toy": toy})
    hub.redirect, hub.files = {"moved.pth.tar": f"{hub.url}/login"}, {"login": b"<html>sign in</html>"}
    with pytest.raises(InputError, match=r"expected weights .* found a web page"):
        pull("toy")
    assert hub.gets == ["moved.pth.tar", "login"]


def test_when_a_file_has_no_published_digest_then_the_first_download_is_pinned_and_others_are_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Entry("toy", "image", "PoolFormer", None, "mit", url=f"{hub.url}/w.safetensors", architecture="toy_of_timm")
    monkeypatch.setattr(registry, "published", lambda: {"toy": toy})
    written: list[str] = []

    def convert(files: dict[str, Path], folder: Path, **_: Any) -> None:
        written.append(next(iter(files.values())).read_text())
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(save({"weight": torch.zeros(1)}))
        write_checksums(folder, Origin("toy", "mit"))

    monkeypatch.setattr("tsfm.weights.download.convert", convert)
    hub.files = {"w.safetensors": b"one"}
    first = pull("toy_of_timm")  # timm's name of the architecture
    assert first == pull("toy") == registry.local_folder("toy_of_timm")
    assert "no digest was published, so this download is trusted" in capsys.readouterr().out
    shutil.rmtree(first)
    hub.files = {"w.safetensors": b"two"}
    with pytest.raises(InputError, match=r"expected sha256 7692c3ad.*, found 3fc4ccfe"):
        pull("toy")
    hub.files = {"w.safetensors": b"one"}
    pull("toy")
    assert written == ["one", "one"]


def test_when_the_registry_is_listed_then_licences_sizes_and_scores_are_there(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    pull("toy")
    listed = json.loads(done(capsys, "weights", "list", "--json", "-"))
    rows = {row["name"]: row for row in listed["rows"]}
    assert rows["toy"]["size"] > 1000
    assert len(rows["toy"]["sha256"]) == 64
    assert rows["closed"]["restricted"]
    assert rows["closed"]["folder"] is None
    shown = done(capsys, "weights", "list")
    assert "cc-by-nc-4.0 (!)" in shown
    assert max(map(len, shown.splitlines())) <= 100
    wide = done(capsys, "weights", "list", "--wide")
    assert rows["toy"]["sha256"][:12] in wide
    assert rows["toy"]["sha256"][:12] not in shown


def test_when_a_forecaster_is_listed_then_it_takes_what_its_class_takes() -> None:
    listed = [entry for entry in registry.entries().values() if entry.task == "forecast"]
    kinds = {entry.family: model_class(entry.family) for entry in listed}
    tiny = {family: kind(64, 16, kind.config_type.tiny()) for family, kind in kinds.items()}  # type: ignore[attr-defined]
    for entry in listed:
        model = load(entry.folder) if entry.folder is not None else tiny[entry.family]
        assert (entry.several, entry.covariates) == (model.joint, model.covariates), entry.name


@pytest.mark.slow
def test_when_two_processes_pull_at_once_then_one_fetches_and_both_find_it(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done_first = pull("toy")
    write_checksums(done_first, Origin("chronos-bolt-tiny", "apache-2.0"))
    done_first.rename(tmp_path / "chronos-bolt-tiny")
    code = "from tsfm.commands.cli import main; main()"
    words = ["weights", "pull", "chronos-bolt-tiny", "--mirror", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TSFM_CACHE": str(tmp_path / "both")}
    workers = [
        subprocess.Popen([sys.executable, "-c", code, *words], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs[0] == outputs[1]
    assert "use it as --model chronos-bolt-tiny" in outputs[0]
    monkeypatch.setenv("TSFM_CACHE", str(tmp_path / "both"))
    assert sorted(p.name for p in (tmp_path / "both/weights").iterdir()) == [
        "chronos-bolt-tiny",
        "chronos-bolt-tiny.lock",
    ]
