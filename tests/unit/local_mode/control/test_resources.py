"""Resources on disk: what is there after a kill, what a name is, and tags."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_mode.contracts import ServiceError
from local_mode.control.arns import Arns
from local_mode.control.resources import FILE_NAME, MAX_TAGS, SqliteResources, StateUnreadable

ARNS = Arns("eu-west-1")
ENDPOINT_ARN = "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/one"


@pytest.fixture
def resources(tmp_path: Path) -> Iterator[SqliteResources]:
    store = SqliteResources(tmp_path, ARNS)
    yield store
    store.close()


def test_a_record_is_what_was_added(resources: SqliteResources) -> None:
    record = {"EndpointName": "One", "ProductionVariants": [{"VariantName": "a", "CurrentWeight": 0.5}]}
    resources.add("endpoint", "One", record)
    assert resources.get("endpoint", "One") == record
    assert resources.all("endpoint") == [record]
    assert resources.all("model") == []


def test_a_name_is_one_name_in_any_case_and_per_kind(resources: SqliteResources) -> None:
    resources.add("endpoint", "One", {"EndpointName": "One"})
    resources.add("model", "One", {"ModelName": "One"})
    assert resources.get("endpoint", "oNE")["EndpointName"] == "One"
    with pytest.raises(ServiceError) as caught:
        resources.add("endpoint", "ONE", {})
    assert caught.value.code == "ValidationException"
    assert caught.value.message == f'Cannot create already existing endpoint "{ENDPOINT_ARN}".'


@pytest.mark.parametrize("act", ["get", "change", "remove"])
def test_what_is_missing_cannot_be_found(resources: SqliteResources, act: str) -> None:
    with pytest.raises(ServiceError) as caught:
        getattr(resources, act)("endpoint", "one")
    assert caught.value.code == "ValidationException"
    assert caught.value.message == f'Could not find endpoint "{ENDPOINT_ARN}".'


def test_change_sets_and_removes_members(resources: SqliteResources) -> None:
    resources.add(
        "endpoint", "one", {"EndpointStatus": "Creating", "LastModifiedTime": 1.0, "FailureReason": "x"}
    )
    changed = resources.change("endpoint", "one", EndpointStatus="InService", FailureReason=None)
    assert changed == resources.get("endpoint", "one")
    assert changed.pop("LastModifiedTime") > 1.0
    assert changed == {"EndpointStatus": "InService"}


def test_tags_end_with_their_resource(resources: SqliteResources) -> None:
    resources.add("endpoint", "one", {})
    resources.tag(ENDPOINT_ARN, {"a": "1", "b": "2"})
    resources.tag(ENDPOINT_ARN, {"b": "3", "c": "4"})
    resources.untag(ENDPOINT_ARN, ["a", "unknown"])
    assert resources.tags(ENDPOINT_ARN) == {"b": "3", "c": "4"}
    resources.remove("endpoint", "ONE")
    assert resources.tags(ENDPOINT_ARN) == {}


def test_too_many_tags_change_nothing(resources: SqliteResources) -> None:
    resources.tag(ENDPOINT_ARN, {"first": "1"})
    with pytest.raises(ServiceError) as caught:
        resources.tag(ENDPOINT_ARN, {f"k{number}": "" for number in range(MAX_TAGS)})
    assert caught.value.code == "ResourceLimitExceeded"
    assert resources.tags(ENDPOINT_ARN) == {"first": "1"}


WRITER = """
import sys
from pathlib import Path
from local_mode.control.arns import Arns
from local_mode.control.resources import SqliteResources

resources = SqliteResources(Path(sys.argv[1]), Arns("eu-west-1"))
for number in range(1_000_000):
    resources.add("model", f"m{number}", {"ModelName": f"m{number}"})
    print(number, flush=True)
"""


def test_every_change_that_was_told_survives_a_kill(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    with writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(20)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.readlines()
    store = SqliteResources(tmp_path, ARNS)
    kept = {record["ModelName"] for record in store.all("model")}
    store.close()
    assert {f"m{int(number)}" for number in told} <= kept


def test_another_schema_is_refused_with_the_way_out(tmp_path: Path) -> None:
    SqliteResources(tmp_path, ARNS).close()
    database = sqlite3.connect(tmp_path / FILE_NAME)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateUnreadable, match="schema 99.*local reset"):
        SqliteResources(tmp_path, ARNS)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(StateUnreadable, match="not a database.*remove it"):
        SqliteResources(tmp_path, ARNS)
