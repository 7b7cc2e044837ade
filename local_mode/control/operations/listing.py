"""Filters, order and pages of the List operations: the same members mean the same for every kind of resource."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from local_mode.contracts import Record, ServiceError
from local_mode.control.operations.refusal import invalid

DEFAULT_PAGE = 10

_EQUALS = {"EndpointNameEquals": "EndpointName", "VariantNameEquals": "VariantName"}
_TIMES = ("CreationTime", "LastModifiedTime")


@dataclass(frozen=True, slots=True)
class Listing:
    """How one kind is listed: `prefix` is what its Name and Status members begin with."""

    prefix: str
    reply_member: str

    def page(self, records: list[Record], request: Record) -> Record:
        """The reply of one List call: one page, and NextToken when there is more."""
        by = {"Name": f"{self.prefix}Name", "Status": f"{self.prefix}Status"}.get(
            request.get("SortBy", "CreationTime"), "CreationTime"
        )
        descending = request.get("SortOrder", "Descending") == "Descending"

        def place(record: Record) -> tuple[str | float, str]:
            return record[by], record[f"{self.prefix}Name"]

        wanted = sorted(
            (record for record in records if self._fits(record, request)), key=place, reverse=descending
        )
        if "NextToken" in request:
            last = _last_place(request["NextToken"], by)
            wanted = [
                record for record in wanted if (place(record) < last if descending else place(record) > last)
            ]
        size = request.get("MaxResults", DEFAULT_PAGE)
        reply: Record = {self.reply_member: wanted[:size]}
        if len(wanted) > size:
            reply["NextToken"] = _token(by, place(wanted[size - 1]))
        return reply

    def _fits(self, record: Record, request: Record) -> bool:
        if request.get("NameContains", "").lower() not in record[f"{self.prefix}Name"].lower():
            return False
        if "StatusEquals" in request and record[f"{self.prefix}Status"] != request["StatusEquals"]:
            return False
        if any(name in request and record.get(member) != request[name] for name, member in _EQUALS.items()):
            return False
        return not any(
            (f"{time}Before" in request and record[time] >= request[f"{time}Before"])
            or (f"{time}After" in request and record[time] <= request[f"{time}After"])
            for time in _TIMES
        )


def _token(by: str, place: tuple[str | float, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([by, *place]).encode()).decode()


def _last_place(token: str, by: str) -> tuple[str | float, str]:
    try:
        sorted_by, value, name = json.loads(base64.urlsafe_b64decode(token))
        fits = (
            sorted_by == by
            and isinstance(name, str)
            and isinstance(value, float | int) == by.endswith("Time")
        )
    except (ValueError, TypeError, binascii.Error) as error:
        raise _bad_token() from error
    if not fits:
        raise _bad_token()
    return value, name


def _bad_token() -> ServiceError:
    return invalid("NextToken is not one that this listing gave, with the same SortBy.")
