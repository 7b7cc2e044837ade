"""Tags of resources, by ARN."""

from __future__ import annotations

from typing import cast, get_args

from local_mode.contracts import Kind, Record
from local_mode.control.operations.refusal import invalid
from local_mode.control.resources import SqliteResources


class Tags:
    """AddTags, ListTags, DeleteTags."""

    def __init__(self, resources: SqliteResources) -> None:
        self._resources = resources

    def add(self, request: Record) -> Record:
        arn = self._existing(request)
        self._resources.tag(arn, tag_map(request))
        return {"Tags": _tag_list(self._resources.tags(arn))}

    def listed(self, request: Record) -> Record:
        """All at once: a resource has no more tags than one page holds."""
        return {"Tags": _tag_list(self._resources.tags(self._existing(request)))}

    def delete(self, request: Record) -> Record:
        self._resources.untag(self._existing(request), request["TagKeys"])
        return {}

    def _existing(self, request: Record) -> str:
        """The ARN as the store has it. Raises `ServiceError` (ValidationException)."""
        arn: str = request["ResourceArn"]
        kind, _, name = arn.split(":", 5)[5].partition("/")
        if kind not in get_args(Kind):
            raise invalid(f'"{arn}" names no kind of resource that is emulated: {", ".join(get_args(Kind))}.')
        known = cast(Kind, kind)
        self._resources.get(known, name)
        own = self._resources.arn(known, name)
        if arn.lower() != own.lower():
            raise invalid(
                f'Could not find "{arn}": this emulator\'s resources begin with "{own.rpartition(":")[0]}:".'
            )
        return own


def tag_map(request: Record) -> dict[str, str]:
    """The tags of a request. Raises `ServiceError` (ValidationException) for a key that is there twice."""
    tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags", ())}
    if len(tags) != len(request.get("Tags", ())):
        raise invalid("Duplicate tag keys found. Please provide unique tag keys.")
    return tags


def _tag_list(tags: dict[str, str]) -> list[Record]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
