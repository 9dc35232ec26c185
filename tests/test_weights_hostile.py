"""Hostile, damaged and disguised files of weights are refused with their reason, and nothing in them is run."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import run
from safetensors.torch import save_file

from tsfm.models.scaling_law.encoder import Encoder
from tsfm.models.scaling_law.trunk import TrunkConfig
from tsfm.weights.folders import Origin, verify, write_checksums
from tsfm.weights.pretrained import load, save
from tsfm.weights.tensors import layout, read_tensors
from tsfm_data.errors import InputError


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder with checksums, to spoil."""
    torch.manual_seed(0)
    save(Encoder(64, 32, TrunkConfig(8, 1, 1)), tmp_path / "small")
    write_checksums(tmp_path / "small", Origin("small", "apache-2.0"))
    return tmp_path / "small"


def header(content: bytes, more: bytes = b"") -> bytes:
    return len(content).to_bytes(8, "little") + content + more


def tensor(shape: list[object], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "something else"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        ((2**62).to_bytes(8, "little") + b'{"a":1}', "claims 4,611,686,018,427,387,904"),
        ((2**25).to_bytes(8, "little") + b"{" + b" " * 2**25, "at most 16,777,216 bytes"),
        (header(b"{" * 50_000), "a wrong one"),
        (header(b'{"a":' * 50_000), "a wrong one"),
        (header(tensor([2], [0, 8])), "expected 8 bytes of tensors"),
        (header(tensor([2], [0, 8]), b"12345678extra"), "something appended"),
        (header(tensor([2**40], [0, 8]), b"12345678"), "does not fill its span"),
        (header(tensor([-2], [0, 8]), b"12345678"), "a whole number"),
        (header(tensor([2], [0, 8], "X9"), b"12345678"), "'X9'"),
        (header(b'{"a": 3}'), "a wrong one"),
        (pickle.dumps({"a": 1}), "a pickle under that name: it was not read"),
    ],
)
def test_when_a_safetensors_file_is_wrong_then_it_is_refused_before_it_is_read(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        layout(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x0480])
def test_when_a_length_begins_as_a_pickle_does_then_the_file_is_read(tmp_path: Path, length: int) -> None:
    file, content = tmp_path / "model.safetensors", tensor([2], [0, 8])
    file.write_bytes(header(content.ljust(length), b"12345678"))
    assert layout(file).shapes == {"a": (2,)}


def test_when_code_hides_in_a_file_then_it_is_named_and_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Bomb(proof)}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=r"code that would be called \(posix.mkdir\): it was not run"):
        read_tensors(tmp_path / "x.ckpt")
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(InputError, match="which was not run"):
        read_tensors(tmp_path / "x.pth")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "x.ckpt").read_bytes())
    with pytest.raises(InputError, match="a PyTorch file under that name: it was not read"):
        read_tensors(tmp_path / "model.safetensors")
    assert not proof.exists()


def test_when_a_pytorch_file_is_truncated_or_would_grow_then_it_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pt")
    whole = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:2000])
    with pytest.raises(InputError, match="a truncated one"):
        read_tensors(tmp_path / "cut.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as stored,
        zipfile.ZipFile(tmp_path / "big.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(InputError, match="one that would grow"):
        read_tensors(tmp_path / "big.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"expected a state dict .* found list"):
        read_tensors(tmp_path / "list.pt")


def edit(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 99}, "format_version up to 1 .* found 99: upgrade tsfm-suite"),
        ({"context": 10**9}, "expected less than or equal to 1000000 at context, found 1,000,000,000"),
        ({"horizon": 0}, "expected greater than or equal to 1 at horizon, found 0"),
        ({"format_version": True}, "format_version up to 1 .* found True"),
        (
            {"config": {"d_model": 2**40, "layers": 1, "heads": 1}},
            "d_model of at most",
        ),
        ({"config": {"d_model": 8, "layers": 10**9, "heads": 1}}, "layers of at most 1,000, found 1,000,000,000"),
        ({"config": {"d_model": 8, "layers": 999, "heads": 1}}, "layers of at most the"),
        ({"config": {"d_model": 2**20, "layers": 1, "heads": 1}}, "more values than that"),
        ({"config": {"d_model": 8, "_target_": "os.system"}}, "unknown key of TrunkConfig '_target_'"),
        ({"model_type": "os.system"}, "unknown model type 'os.system'"),
    ],
)
def test_when_a_config_asks_for_more_than_its_weights_then_it_is_refused_before_memory_is_taken(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    edit(folder, **changes)
    with pytest.raises(InputError, match=reason):
        load(folder)


def test_when_a_folder_holds_links_or_other_files_then_it_is_refused(folder: Path, tmp_path: Path) -> None:
    assert verify(folder)[0].compared == 3
    (folder / "extra.pkl").write_bytes(b"x")
    with pytest.raises(InputError, match=r"found 'extra.pkl': take it out"):
        verify(folder)
    (folder / "extra.pkl").unlink()
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    for check in (verify, load):
        with pytest.raises(InputError, match="found a link out of its folder"):
            check(folder)


def test_when_weights_are_swapped_renamed_or_of_a_newer_format_then_verify_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = folder / "checksums.json"
    original, weights = sums.read_text(), (folder / "model.safetensors").read_bytes()
    save_file({"other": torch.zeros(3)}, folder / "model.safetensors")
    result = run(capsys, "weights", "verify", str(folder))
    assert (result.status, "SHA-256" in result.err) == (2, True)
    sums.unlink()
    assert "expected tensor" in run(capsys, "weights", "verify", str(folder)).err
    (folder / "model.safetensors").write_bytes(weights)
    assert "no checksums to compare with" in run(capsys, "weights", "verify", str(folder)).out
    sums.write_text(original.replace('"format_version": 1', '"format_version": 2'))
    assert "upgrade tsfm-suite" in run(capsys, "weights", "verify", str(folder)).err
    sums.write_text(original.replace('"model.safetensors"', '"other.safetensors"'))
    assert "it was not followed" in run(capsys, "weights", "verify", str(folder)).err
    assert "found none" in run(capsys, "weights", "verify", str(tmp_path / "nowhere")).err


def test_when_a_foreign_config_is_too_large_for_its_weights_then_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"in_proj.weight": torch.zeros(1, 8, 8), "encoder.layers.0.self_attn.q_norm.weight": torch.zeros(8)}
    save_file(state, tmp_path / "model.safetensors")
    for config in ({"d_model": 10**9}, {"d_model": 8, "num_layers": 10**9}, {"d_model": 8, "patch_sizes": [10**9]}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        result = run(capsys, "weights", "convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out"))
        assert result.status == 2
        assert "config and weights do not belong together" in result.err
    assert not (tmp_path / "out").exists()
