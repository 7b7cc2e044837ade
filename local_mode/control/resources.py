"""Resources and their tags in one sqlite file. Knows names and JSON records, not what an operation may do with them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_mode.contracts import Kind, Record, ServiceError
from local_mode.control.arns import TITLES, Arns

SCHEMA_VERSION = 1
FILE_NAME = "resources.sqlite"
MAX_TAGS = 50

_SCHEMA = """
CREATE TABLE resources (
    kind TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, record TEXT NOT NULL, PRIMARY KEY (kind, name)
);
CREATE TABLE tags (arn TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (arn, key));
"""


class StateUnreadable(Exception):
    """The state folder holds a file that this version cannot use. The message says what to do."""


class SqliteResources:
    """The `Resources` role, and tags. Each change is one transaction that is on disk when the call returns.

    Names are found whatever their case, as AWS does; a record keeps its name's first spelling.
    """

    def __init__(self, state_dir: Path, arns: Arns) -> None:
        """Raises `StateUnreadable`."""
        self._arns = arns
        path = state_dir / FILE_NAME
        # All calls come from one thread at a time; which one it is, the server decides.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise StateUnreadable(
                f"{path} cannot be read ({error}): remove it, or use another state folder"
            ) from error
        except StateUnreadable:
            self._database.close()
            raise

    def close(self) -> None:
        self._database.close()

    def add(self, kind: Kind, name: str, record: Record) -> None:
        try:
            with self._transaction():
                self._database.execute(
                    "INSERT INTO resources VALUES (?, ?, ?)", (kind, name, json.dumps(record))
                )
        except sqlite3.IntegrityError as error:
            arn = self.arn(kind, name)
            raise ServiceError(
                "ValidationException", f'Cannot create already existing {TITLES[kind]} "{arn}".'
            ) from error

    def get(self, kind: Kind, name: str) -> Record:
        row = self._database.execute(
            "SELECT record FROM resources WHERE kind = ? AND name = ?", (kind, name)
        ).fetchone()
        if row is None:
            raise self.not_found(kind, name)
        return _record(row[0])

    def change(self, kind: Kind, name: str, **members: Any) -> Record:
        with self._transaction():
            record = self.get(kind, name) | members | {"LastModifiedTime": now_s()}
            record = {member: value for member, value in record.items() if value is not None}
            self._database.execute(
                "UPDATE resources SET record = ? WHERE kind = ? AND name = ?",
                (json.dumps(record), kind, name),
            )
        return record

    def remove(self, kind: Kind, name: str) -> None:
        """With its tags. Raises `ServiceError` (ValidationException) when there is no such resource."""
        with self._transaction():
            removed = self._database.execute(
                "DELETE FROM resources WHERE kind = ? AND name = ?", (kind, name)
            ).rowcount
            if not removed:
                raise self.not_found(kind, name)
            self._database.execute("DELETE FROM tags WHERE arn = ?", (self.arn(kind, name),))

    def all(self, kind: Kind) -> list[Record]:
        """By name."""
        rows = self._database.execute("SELECT record FROM resources WHERE kind = ? ORDER BY name", (kind,))
        return [_record(row[0]) for row in rows.fetchall()]

    def not_found(self, kind: Kind, name: str) -> ServiceError:
        return ServiceError("ValidationException", f'Could not find {TITLES[kind]} "{self.arn(kind, name)}".')

    def arn(self, kind: Kind, name: str) -> str:
        return self._arns.of(kind, name)

    def tags(self, arn: str) -> dict[str, str]:
        rows = self._database.execute("SELECT key, value FROM tags WHERE arn = ? ORDER BY rowid", (arn,))
        return dict(rows.fetchall())

    def tag(self, arn: str, tags: Mapping[str, str]) -> None:
        """Raises `ServiceError` (ResourceLimitExceeded) when the resource would have more than `MAX_TAGS`."""
        with self._transaction():
            self._database.executemany(
                "INSERT INTO tags VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                [(arn, key, value) for key, value in tags.items()],
            )
            if len(self.tags(arn)) > MAX_TAGS:
                raise ServiceError(
                    "ResourceLimitExceeded",
                    f'"{arn}" would have more than the {MAX_TAGS} tags that are allowed.',
                )

    def untag(self, arn: str, keys: Iterable[str]) -> None:
        with self._transaction():
            self._database.executemany(
                "DELETE FROM tags WHERE arn = ? AND key = ?", [(arn, key) for key in keys]
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _prepare(self, path: Path) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise StateUnreadable(
                f"{path} was written by another version (schema {version}, this one has {SCHEMA_VERSION}): "
                f"`textgen-endpoint local reset` removes it, or use another state folder"
            )
        if version == 0:
            self._database.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )


def now_s() -> float:
    """Epoch seconds to the millisecond, as AWS gives them."""
    return round(time.time(), 3)


def _record(text: str) -> Record:
    record: Record = json.loads(text)
    return record
