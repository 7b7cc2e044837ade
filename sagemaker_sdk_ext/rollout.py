"""Sends a deployment's requests in order and waits for SageMaker. What cannot be finished is taken back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from sagemaker_sdk_ext.autoscaling import POLICY_ARN, Call
from sagemaker_sdk_ext.backends import Backend, Request
from sagemaker_sdk_ext.deployment import DeploymentRequests
from sagemaker_sdk_ext.errors import DeploymentFailed

_IN_SERVICE = "InService"
_UNDER_WAY = frozenset({"Creating", "Updating", "SystemUpdating"})


def roll_out(
    backend: Backend,
    requests: DeploymentRequests,
    *,
    wait: bool,
    poll_s: float,
    made: Callable[[DeploymentRequests], None],
) -> None:
    """Raises `DeploymentFailed` when the endpoint or component fails, and what the AWS client raises for a refused call;
    then what this call had created before is deleted, but a failed endpoint stays for its logs.

    `made` is told, each time that there is more, what `take_down` would delete.
    """
    created = _create(backend, requests)
    component = requests.component
    made(replace(requests, component=None, scaling=()))
    if wait or component is not None:
        _wait("endpoint", requests.endpoint["EndpointName"], backend.endpoint_status, poll_s)
    if component is None:
        return
    with created:
        backend.create("CreateInferenceComponent", component)
        created.pop_all()
    made(replace(requests, scaling=()))
    if wait:
        _wait("inference component", component["InferenceComponentName"], backend.component_status, poll_s)


def _create(backend: Backend, requests: DeploymentRequests) -> ExitStack:
    """What deletes all of it again, the last one first, if it is left before its callbacks are taken out."""
    with ExitStack() as created:
        for operation, request, key in _resources(requests):
            backend.create(f"Create{operation}", request)
            created.callback(backend.delete, f"Delete{operation}", {key: request[key]})
        return created.pop_all()


def apply_scaling(backend: Backend, calls: Iterable[Call]) -> None:
    """Policies, in order; an alarm acts on the policy before it."""
    policy_arn = ""
    for service, operation, request in calls:
        if request.get("AlarmActions") == [POLICY_ARN]:
            request = request | {"AlarmActions": [policy_arn]}
        answer = getattr(backend.service(service), operation)(**request)
        policy_arn = answer.get("PolicyARN", policy_arn)


def take_down(backend: Backend, requests: DeploymentRequests, *, poll_s: float) -> None:
    """Delete what is left of what `roll_out` and `apply_scaling` made, the endpoint after its component is gone."""
    for service, operation, request in requests.scaling:
        if operation == "register_scalable_target":
            keys = ("ServiceNamespace", "ResourceId", "ScalableDimension")
            with _may_be_gone():
                backend.service(service).deregister_scalable_target(**{key: request[key] for key in keys})
        elif operation == "put_metric_alarm":
            backend.service(service).delete_alarms(AlarmNames=[request["AlarmName"]])
    if requests.component is not None:
        name = requests.component["InferenceComponentName"]
        if _status_or_none(name, backend.component_status) is not None:
            backend.delete("DeleteInferenceComponent", {"InferenceComponentName": name})
            _wait_until_gone(name, backend.component_status, poll_s)
    for operation, request, key in reversed(_resources(requests)):
        with _may_be_gone():
            backend.delete(f"Delete{operation}", {key: request[key]})


@contextmanager
def _may_be_gone() -> Iterator[None]:
    """A second attempt finds some of it deleted. ValidationException alone does not say that: it also means *not now*."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        missing = "could not find" in str(details.get("Message", "")).lower()
        if not missing and details.get("Code") not in ("ResourceNotFound", "ObjectNotFoundException"):
            raise


def _resources(requests: DeploymentRequests) -> tuple[tuple[str, Request, str], ...]:
    return (
        ("Model", requests.model, "ModelName"),
        ("EndpointConfig", requests.endpoint_config, "EndpointConfigName"),
        ("Endpoint", requests.endpoint, "EndpointName"),
    )


def _wait_until_gone(name: str, status: Callable[[str], tuple[str, str]], poll_s: float) -> None:
    while (found := _status_or_none(name, status)) is not None:
        state, reason = found
        if state != "Deleting":
            raise DeploymentFailed(
                f"inference component {name!r} is not deleted but {state}: {reason or 'no reason given'}",
                reason=reason,
            )
        time.sleep(poll_s)


def _status_or_none(name: str, status: Callable[[str], tuple[str, str]]) -> tuple[str, str] | None:
    """None for a component that does not exist."""
    from botocore.exceptions import ClientError

    try:
        return status(name)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("ValidationException", "ResourceNotFound"):
            return None
        raise


def _wait(kind: str, name: str, status: Callable[[str], tuple[str, str]], poll_s: float) -> None:
    while True:
        state, reason = status(name)
        if state == _IN_SERVICE:
            return
        if state not in _UNDER_WAY:
            raise DeploymentFailed(
                f"{kind} {name!r} is {state}: {reason or 'no reason given'}; its log group is "
                f"/aws/sagemaker/{'Endpoints' if kind == 'endpoint' else 'InferenceComponents'}/{name}",
                reason=reason,
            )
        time.sleep(poll_s)
