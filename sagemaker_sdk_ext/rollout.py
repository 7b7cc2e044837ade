"""Sends a deployment's requests in order and waits for SageMaker. What cannot be finished is taken back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from sagemaker_sdk_ext.autoscaling import POLICY_ARN, Call
from sagemaker_sdk_ext.backends import Backend, Request
from sagemaker_sdk_ext.deployment import DeploymentRequests
from sagemaker_sdk_ext.errors import DeploymentFailed

_IN_SERVICE = "InService"
_UNDER_WAY = frozenset({"Creating", "Updating", "SystemUpdating"})


def roll_out(backend: Backend, requests: DeploymentRequests, *, wait: bool, poll_s: float) -> None:
    """Raises `DeploymentFailed` when the endpoint or component fails, and what the AWS client raises for a refused call;
    then what this call had created before is deleted, but a failed endpoint stays for its logs.
    """
    endpoint_name = requests.endpoint["EndpointName"]
    created: list[tuple[str, Request]] = []
    complete = False
    try:
        for operation, request, key in (
            ("Model", requests.model, "ModelName"),
            ("EndpointConfig", requests.endpoint_config, "EndpointConfigName"),
            ("Endpoint", requests.endpoint, "EndpointName"),
        ):
            backend.create(f"Create{operation}", request)
            created.append((f"Delete{operation}", {key: request[key]}))
        complete = True
    finally:
        if not complete:
            for operation, names in reversed(created):
                backend.delete(operation, names)
    if wait or requests.component is not None:
        _wait("endpoint", endpoint_name, backend.endpoint_status, poll_s)
    if requests.component is None:
        return
    backend.create("CreateInferenceComponent", requests.component)
    if wait:
        name = requests.component["InferenceComponentName"]
        _wait("inference component", name, backend.component_status, poll_s)


def apply_scaling(backend: Backend, calls: Iterable[Call]) -> None:
    """Policies, in order; an alarm acts on the policy before it."""
    policy_arn = ""
    for service, operation, request in calls:
        if request.get("AlarmActions") == [POLICY_ARN]:
            request = request | {"AlarmActions": [policy_arn]}
        answer = getattr(backend.service(service), operation)(**request)
        policy_arn = answer.get("PolicyARN", policy_arn)


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
