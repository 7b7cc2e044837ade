"""Downloads from S3, against an in-process imitation of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from container import s3_source
from container.s3_source import fetch_s3
from serving.config import Stage
from serving.errors import ConfigError, ModelError

MODEL = {"config.json": b"{}", "model.safetensors": b"w" * 1000, "tokenizer.json": b"{}"}


@pytest.fixture(scope="module")
def account() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "testing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield boto3.client("s3")


@pytest.fixture
def s3(account: Any) -> Iterator[Any]:
    account.create_bucket(Bucket="models")
    yield account
    bucket = boto3.resource("s3").Bucket("models")
    bucket.objects.all().delete()
    bucket.delete()


def put(s3: Any, prefix: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        s3.put_object(Bucket="models", Key=prefix + name, Body=content)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def ignore(_stage: Stage) -> None:
    pass


@pytest.mark.parametrize("uri", ["s3://models/a/", "s3://models/a"])
def test_a_prefix_becomes_a_folder(s3: Any, tmp_path: Path, uri: str) -> None:
    put(
        s3,
        "a/",
        {**MODEL, "sub/x.json": b"1", "pytorch_model.bin": b"pickle", "run.py": b"code", "folder/": b""},
    )
    put(s3, "ab/", {"other.json": b"not ours"})
    stages: list[Stage] = []
    folder = fetch_s3(uri, tmp_path, stages.append)
    assert files_below(folder) == {**MODEL, "sub/x.json": b"1"}
    assert stages[0] == Stage(stage="downloading", detail="0 %")
    assert stages[-1] == Stage(stage="downloading", detail="100 %")


def test_a_second_fetch_downloads_nothing_until_something_changed(s3: Any, tmp_path: Path) -> None:
    put(s3, "a/", MODEL)
    first = fetch_s3("s3://models/a/", tmp_path, ignore)
    (first / "mark").touch()
    assert fetch_s3("s3://models/a/", tmp_path, ignore) == first
    assert (first / "mark").exists()
    put(s3, "a/", {"config.json": b'{"changed": 1}'})
    second = fetch_s3("s3://models/a/", tmp_path, ignore)
    assert second != first
    assert (second / "config.json").read_bytes() == b'{"changed": 1}'


def test_more_than_one_page(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_source, "_PAGE_SIZE", 2)
    put(s3, "a/", {**MODEL, "zz.json": b"last"})
    assert set(files_below(fetch_s3("s3://models/a/", tmp_path, ignore))) == {*MODEL, "zz.json"}


def test_too_many_objects(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_source, "_MAX_OBJECTS", 2)
    put(s3, "a/", MODEL)
    with pytest.raises(ModelError, match="has over 2 objects"):
        fetch_s3("s3://models/a/", tmp_path, ignore)


def test_an_archive_object(s3: Any, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        info = tarfile.TarInfo("config.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
    put(s3, "a/", {"model.tar.gz": packed.getvalue()})
    assert files_below(fetch_s3("s3://models/a/model.tar.gz", tmp_path, ignore)) == {"config.json": b"{}"}


@pytest.mark.parametrize(
    "name", ["../escape.json", "x/../../escape.json", "x//y.json", "./x.json", "n" * 256 + ".json"]
)
def test_names_that_are_no_paths(s3: Any, tmp_path: Path, name: str) -> None:
    put(s3, "a/", {**MODEL, name: b"evil"})
    with pytest.raises(ModelError, match="is not a relative path"):
        fetch_s3("s3://models/a/", tmp_path / "cache", ignore)
    assert list(tmp_path.rglob("*.json")) == []


def test_an_object_that_is_a_folder_too(s3: Any, tmp_path: Path) -> None:
    put(s3, "a/", {**MODEL, "sub.json": b"1", "sub.json/x.json": b"2"})
    with pytest.raises(ModelError, match=r"'sub\.json' is both an object and a folder"):
        fetch_s3("s3://models/a/", tmp_path, ignore)


def test_nothing_there(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model files"):
        fetch_s3("s3://models/nothing/", tmp_path, ignore)
    put(s3, "b/", {"x.json": b"1"})
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        fetch_s3("s3://models/b/", tmp_path, ignore)
    with pytest.raises(ModelError, match="the bucket does not exist"):
        fetch_s3("s3://no-such-bucket/a/", tmp_path, ignore)


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "s3://bucket/a?b=c"])
def test_uris_that_name_no_place(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="is no S3 location"):
        fetch_s3(uri, tmp_path, ignore)


def test_a_broken_download_leaves_nothing(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, "a/", MODEL)

    def full_disk(*_args: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("s3transfer.utils.OSUtils.open", full_disk)
        with pytest.raises(ModelError, match="No space left on device"):
            fetch_s3("s3://models/a/", tmp_path, ignore)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert files_below(fetch_s3("s3://models/a/", tmp_path, ignore)) == MODEL


def test_too_little_space_is_known_before(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, "a/", MODEL)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelError, match="are free; free some space"):
        fetch_s3("s3://models/a/", tmp_path, ignore)
