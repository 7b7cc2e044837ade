"""AWS JSON 1.1 over one POST: which operation, its members, and the reply or error as the SDKs read them.

Knows the service model (botocore's own copy); what an operation does is the registry's.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from local_mode.contracts import Record, ServiceError
from local_mode.control import service_model
from local_mode.control.validation import check_request

CONTENT_TYPE = "application/x-amz-json-1.1"
TARGET_PREFIX = "SageMaker"

Operation = Callable[[Record], Record]

log = logging.getLogger(__name__)


class BotocoreTooOld(Exception):
    """Its service model lacks operations that are emulated. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class ControlPlane:
    """Answers calls with `operations`, by the service model's operation names."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        """Raises `BotocoreTooOld` when the service model, as old as the installed botocore, lacks one of them."""
        # To ask here also reads the model, for a quarter of a second, before there are streams to hold up.
        unknown = [operation for operation in operations if not service_model.is_known(operation)]
        if unknown:
            raise BotocoreTooOld(
                f"the installed botocore does not know {', '.join(unknown)}: pip install -U boto3"
            )
        self._operations = operations

    def call(self, target: str, body: bytes) -> Reply:
        """`target` is the header X-Amz-Target. Every outcome is a reply; one line is logged for it."""
        request_id = str(uuid.uuid4())
        prefix, _, operation = target.rpartition(".")
        try:
            reply = self._answer(prefix, operation, body)
        except ServiceError as error:
            log.info("call operation=%s error=%s message=%r", operation, error.code, error.message)
            content = json.dumps({"__type": error.code, "message": error.message} | error.members)
            return _reply(error.status, content, request_id)
        log.info("call operation=%s %s", operation, _subject(reply))
        return _reply(
            200, json.dumps(reply) if reply or service_model.has_output(operation) else "", request_id
        )

    def _answer(self, prefix: str, operation: str, body: bytes) -> Record:
        if prefix != TARGET_PREFIX:
            raise ServiceError(
                "UnknownOperationException",
                f"'{prefix}.{operation}' is not an operation of SageMaker, which is all that this emulator is: set only "
                "AWS_ENDPOINT_URL_SAGEMAKER and AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME to its address, not AWS_ENDPOINT_URL.",
            )
        act = self._operations.get(operation)
        if act is None:
            known = (
                "is not emulated" if service_model.is_known(operation) else "is not an operation of SageMaker"
            )
            raise ServiceError(
                "UnknownOperationException",
                f"{operation} {known}. Emulated here: {', '.join(sorted(self._operations))}.",
            )
        request = _parsed(body)
        check_request(service_model.input_shape(operation), request)
        return service_model.shown(service_model.output_shape(operation), act(request))


def _parsed(body: bytes) -> Record:
    try:
        request = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise ServiceError("SerializationException", f"The body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise ServiceError("SerializationException", "The body is not a JSON object")
    given: Record = _without_nulls(request)
    return given


def _without_nulls(value: Any) -> Any:
    """To AWS a member that is null is a member that is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _reply(status: int, content: str, request_id: str) -> Reply:
    headers = {"Content-Type": CONTENT_TYPE, "x-amzn-RequestId": request_id}
    return Reply(status, content.encode(), headers)


def _subject(reply: Record) -> str:
    """What the call was about, for the log: the ARN or status it answers with, if any."""
    named: list[tuple[str, Any]] = [
        (member, value) for member, value in reply.items() if member.endswith(("Arn", "Status"))
    ]
    return " ".join(f"{member}={value}" for member, value in named) or "ok"
