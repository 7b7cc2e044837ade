"""Model data from S3 (moto's server) and from disk: whole and read-only, or refused with nothing left."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from local_mode.contracts import ContainerFailed, ModelData, Record
from local_mode.hosting.model_data import ModelFolders, from_definition
from local_mode.hosting.s3 import S3
from tests.unit.local_mode.hosting.world import World, run, variant

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@pytest.fixture(scope="module")
def endpoint_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    storage = boto3.resource("s3", endpoint_url=endpoint_url, region_name="us-east-1")
    bucket = storage.create_bucket(Bucket="models")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()
    bucket.meta.client.close()


def archive_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def source(uri: str, kind: str = "S3Prefix", compression: str = "None") -> Record:
    return {"S3DataSource": {"S3Uri": uri, "S3DataType": kind, "CompressionType": compression}}


def fetched(tmp_path: Path, endpoint_url: str, data: ModelData | None) -> dict[str, bytes]:
    if data is None:
        raise AssertionError("no model data")
    s3 = S3(region="us-east-1", endpoint_url=endpoint_url)
    folders = ModelFolders(tmp_path / "data", s3)
    said: list[str] = []
    try:
        folder = asyncio.run(folders.fetch(data, folders.make() / "model", say=said.append))
    finally:
        s3.close()
    assert said[0].endswith("fetching")
    assert "ready after" in said[-1]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_form_of_model_data_arrives(tmp_path: Path, endpoint_url: str, bucket: Any) -> None:
    bucket.put_object(Key="a/model.tar.gz", Body=archive_of({"config.json": b"{}", "code/x.py": b"1"}))
    bucket.put_object(Key="p/config.json", Body=b"{}")
    bucket.put_object(Key="p/code/x.py", Body=b"1")
    both = {"config.json": b"{}", "code/x.py": b"1"}
    for definition, expected in [
        ({"ModelDataUrl": "s3://models/a/model.tar.gz"}, both),
        ({"ModelDataUrl": "s3://models/nothing/"}, {}),
        ({"ModelDataSource": source("s3://models/a/model.tar.gz", "S3Object", "Gzip")}, both),
        ({"ModelDataSource": source("s3://models/a/", "S3Prefix", "Gzip")}, both),
        ({"ModelDataSource": source("s3://models/p/")}, both),
        ({"ModelDataSource": source("s3://models/p/config.json", "S3Object")}, {"config.json": b"{}"}),
    ]:
        assert fetched(tmp_path, endpoint_url, from_definition(definition)) == expected


@pytest.mark.parametrize(
    ("keys", "uri", "said"),
    [
        ([], "s3://models/p/", "there is no object under this prefix"),
        (["p/x"], "s3://models/p", "an S3Prefix must end in /"),
        (["p/a", "p/a/b"], "s3://models/p/", "'a' is both an object and a folder"),
        (["p/"], "s3://models/p/", "an object of the prefix's own name"),
        (["p/sub/"], "s3://models/p/", "'sub/' is an object that stands for a folder"),
        (["p/a//b"], "s3://models/p/", "'a//b' is no path for a file"),
        (["p/" + "n" * 256], "s3://models/p/", "is no path for a file"),
        ([], "s3://nowhere/p/", "the bucket does not exist"),
        ([], "gopher://x", "is neither s3://… nor file://…"),
        ([], "file:///no/such/folder", "there is no such folder"),
    ],
)
def test_bad_prefixes_are_refused_with_nothing_left(
    tmp_path: Path, endpoint_url: str, bucket: Any, keys: list[str], uri: str, said: str
) -> None:
    for name in keys:
        bucket.put_object(Key=name, Body=b"1")
    with pytest.raises(ContainerFailed) as refused:
        fetched(tmp_path, endpoint_url, ModelData(uri=uri, is_prefix=True, is_compressed=False))
    assert said in str(refused.value)
    assert list((tmp_path / "data").glob("*/*")) == []


def test_an_archive_that_is_not_there_is_refused(tmp_path: Path, endpoint_url: str, bucket: Any) -> None:
    with pytest.raises(ContainerFailed, match=r"s3://models/none.tar.gz: there is no such object"):
        fetched(
            tmp_path,
            endpoint_url,
            ModelData(uri="s3://models/none.tar.gz", is_prefix=False, is_compressed=True),
        )


@pytest.mark.parametrize("uri", ["s3://[models/x", "file://[x", "file:///x%00y"])
def test_a_location_that_is_none_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ContainerFailed) as caught:
        fetched(tmp_path, "http://127.0.0.1:9", ModelData(uri=uri, is_prefix=False, is_compressed=True))
    assert uri in str(caught.value)


def test_an_endpoint_gets_its_model_and_channels_read_only(
    tmp_path: Path, endpoint_url: str, bucket: Any
) -> None:
    bucket.put_object(Key="m.tar.gz", Body=archive_of({"config.json": b"{}"}))
    bucket.put_object(Key="draft/draft.bin", Body=b"d")

    async def story(world: World) -> None:
        world.model(
            ModelDataUrl="s3://models/m.tar.gz",
            AdditionalModelDataSources=[{"ChannelName": "draft", **source("s3://models/draft/")}],
        )
        world.config()
        world.create()
        assert (await world.settled())["EndpointStatus"] == "InService"
        assert (await world.invoke())["model"] == ["config.json"]
        (folder,) = (world.state / "containers").iterdir()
        assert (folder / "ml/additional-model-data-sources/draft/draft.bin").read_bytes() == b"d"
        for path in (folder / "ml/model").resolve().rglob("*"):
            assert not path.stat().st_mode & 0o222

    world = run(tmp_path, story, environment={"AWS_ENDPOINT_URL_S3": endpoint_url, **KEYS})
    assert "model data s3://models/m.tar.gz: ready after" in world.logs()


@pytest.mark.parametrize(
    ("files", "cut", "said"),
    [
        ({"../../evil": b"x"}, None, "member '../../evil' leaves its folder (path traversal)"),
        ({"zeros": bytes(100_000_000)}, None, "no model compresses like that"),
        ({"config.json": os.urandom(5000)}, 3000, "truncated or damaged"),
    ],
)
def test_bad_model_data_fails_the_endpoint_and_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], cut: int | None, said: str
) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(archive_of(files)[:cut])

    async def story(world: World) -> None:
        world.model(ModelDataUrl=f"file://{archive}")
        world.config()
        world.create()
        record = await world.settled()
        assert record["EndpointStatus"] == "Failed"
        assert said in record["FailureReason"]
        assert world.left_on_disk() == []

    run(tmp_path / "state", story)


def test_a_download_that_takes_too_long_fails_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "model.tar.gz"
    archive.write_bytes(archive_of({f"f{number}": b"x" for number in range(9000)}))

    async def story(world: World) -> None:
        world.model(ModelDataUrl=f"file://{archive}")
        world.config("c", variant(ModelDataDownloadTimeoutInSeconds=0.05))
        world.create()
        began_s = time.monotonic()
        record = await world.settled()
        assert (
            "was not downloaded within 0.05 s (ModelDataDownloadTimeoutInSeconds)" in record["FailureReason"]
        )
        assert time.monotonic() - began_s < 10
        assert world.left_on_disk() == []

    run(tmp_path / "state", story)
