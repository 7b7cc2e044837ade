"""Unpacking is safe: what leaves the folder, is a link, is truncated or explodes, leaves nothing behind."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from container import archive as archive_module
from container.archive import unpack
from container.model_source import model_folder
from serving.config import Stage
from serving.errors import ModelError


def member(
    name: str, content: bytes = b"x", *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    return info, content


def make(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file() or path.name != "archives"]


def test_a_good_archive_is_unpacked_once(tmp_path: Path) -> None:
    packed = make(
        tmp_path / "m.tar.gz",
        member("my-model/config.json", b"{}"),
        member("my-model/a/w.safetensors", b"1234"),
    )
    stages: list[Stage] = []
    folder = unpack(packed, tmp_path / "cache", stages.append)
    inner = model_folder(folder)
    assert inner == folder / "my-model"
    assert (inner / "a" / "w.safetensors").read_bytes() == b"1234"
    assert stages[-1].stage == "downloading" and stages[-1].detail.startswith("unpacking ")
    assert unpack(packed, tmp_path / "cache", stages.append) == folder
    assert [path.name for path in (tmp_path / "cache" / "archives").iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "bad",
    [
        member("../escaped"),
        member("a/../../escaped"),
        member("/absolute/../../escaped"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("link", kind=tarfile.SYMTYPE, link="config.json"),
        member("hard", kind=tarfile.LNKTYPE, link="../../escaped"),
        member("device", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
    ],
    ids=["dotdot", "inner-dotdot", "absolute", "symlink-out", "symlink-in", "hardlink", "device", "fifo"],
)
def test_a_bad_member_is_named_and_nothing_stays(tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]) -> None:
    packed = make(tmp_path / "m.tar.gz", member("config.json", b"{}"), bad)
    with pytest.raises(ModelError) as caught:
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert repr(bad[0].name) in caught.value.message
    assert leftovers(tmp_path / "cache") == []
    assert not (tmp_path / "escaped").exists() and not (tmp_path / "cache" / "escaped").exists()


def test_an_absolute_path_lands_inside(tmp_path: Path) -> None:
    folder = unpack(
        make(tmp_path / "m.tar.gz", member("/config.json", b"{}")), tmp_path / "cache", lambda _: None
    )
    assert (folder / "config.json").read_bytes() == b"{}"


def test_a_truncated_archive(tmp_path: Path) -> None:
    noise = bytes(range(256)) * 4096
    packed = make(tmp_path / "m.tar.gz", member("config.json", b"{}"), member("model.safetensors", noise))
    packed.write_bytes(packed.read_bytes()[:-300])
    with pytest.raises(ModelError, match="cannot be unpacked"):
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 not a tar", b"\x1f\x8b\x08\x00garbage-after-the-magic"]
)
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    packed = tmp_path / "m.tar.gz"
    packed.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.tar\.gz cannot be unpacked"):
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 5)
    packed = make(tmp_path / "m.tar.gz", *(member(f"f{i}") for i in range(6)))
    with pytest.raises(ModelError, match="more than 5 members"):
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_ALWAYS_ALLOWED_BYTES", 0)
    packed = make(
        tmp_path / "m.tar.gz", member("config.json", b"{}"), member("zeros", bytes(4 * 1024 * 1024))
    )
    with pytest.raises(ModelError, match="20 times its size"):
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert leftovers(tmp_path / "cache") == []


def test_a_full_disk_is_told_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = make(tmp_path / "m.tar.gz", member("config.json", b"{}"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelError, match=r"needs 0\.00 GB in .* 0\.00 GB are free"):
        unpack(packed, tmp_path / "cache", lambda _: None)
    assert leftovers(tmp_path / "cache") == []
