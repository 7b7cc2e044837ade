"""What a request may not say: by AWS's rules, or because nothing on this machine would do it."""

from __future__ import annotations

from collections.abc import Mapping

from local_mode.contracts import Record, ServiceError

_IN_PROGRESS = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


def invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def refuse_not_emulated(place: str, record: Record, reasons: Mapping[str, str]) -> None:
    """Raises `ServiceError` naming the first member of `record` that `reasons` has; `place` is where the record stands."""
    for member, reason in reasons.items():
        if member in record:
            path = f"{place}.{member}" if place else member
            raise invalid(f"{path} is not emulated on this machine: {reason}.")


def refuse_in_progress(title: str, arn: str, status: str) -> None:
    """Raises `ServiceError` while something is being done to the resource."""
    if status in _IN_PROGRESS:
        raise invalid(f'Cannot update in-progress {title} "{arn}". It is {status}.')
