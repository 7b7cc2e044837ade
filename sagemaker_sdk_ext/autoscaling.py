"""Application Auto Scaling of an endpoint: the requests for a high-resolution concurrency target, and for zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sagemaker_sdk_ext.errors import ConfigurationError

Request = dict[str, Any]
Call = tuple[str, str, Request]

POLICY_ARN = "<PolicyARN>"
"""Stands for the ARN that the call before it answers with."""
_SERVICE = "application-autoscaling"
_VARIANT_METRIC = "SageMakerVariantConcurrentRequestsPerModelHighResolution"
_COMPONENT_METRIC = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Copies are instances, or copies of an inference component. Concurrency counts waiting requests too.

    `target_concurrency` is requests per copy, for asynchronous endpoints the backlog per instance.
    """

    max_copies: int
    min_copies: int = 1
    target_concurrency: float = 16.0
    scale_in_cooldown_s: int = 300
    scale_out_cooldown_s: int = 60


def scaling_requests(
    autoscaling: Autoscaling | None,
    *,
    endpoint_name: str,
    variant_name: str,
    component_name: str | None,
    asynchronous: bool,
    scale_to_zero: bool,
) -> tuple[Call, ...]:
    """Calls as (service, operation, request), in order. Raises `ConfigurationError` for what cannot scale to zero."""
    if scale_to_zero and component_name is None and not asynchronous:
        raise ConfigurationError(
            "scale_to_zero needs an inference component (endpoint_type='INFERENCE_COMPONENT_BASED') or an asynchronous "
            "endpoint; an ordinary endpoint keeps one instance"
        )
    if autoscaling is None:
        if scale_to_zero:
            raise ConfigurationError("scale_to_zero needs autoscaling=Autoscaling(max_copies=...)")
        return ()
    _check(autoscaling)
    if component_name is not None:
        target = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"inference-component/{component_name}",
            "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
        }
    else:
        target = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{endpoint_name}/variant/{variant_name}",
            "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        }
    name = component_name or endpoint_name
    calls: list[Call] = [
        (
            _SERVICE,
            "register_scalable_target",
            target
            | {
                "MinCapacity": 0 if scale_to_zero else autoscaling.min_copies,
                "MaxCapacity": autoscaling.max_copies,
            },
        ),
        (_SERVICE, "put_scaling_policy", target | _tracking(autoscaling, name, component_name, asynchronous)),
    ]
    if scale_to_zero:
        calls += [
            (_SERVICE, "put_scaling_policy", target | _step_from_zero(name)),
            ("cloudwatch", "put_metric_alarm", _alarm(name, endpoint_name, component_name)),
        ]
    return tuple(calls)


def _tracking(autoscaling: Autoscaling, name: str, component_name: str | None, asynchronous: bool) -> Request:
    metric: Request
    if asynchronous:
        metric = {
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": name}],
                "Statistic": "Average",
            }
        }
    else:
        kind = _VARIANT_METRIC if component_name is None else _COMPONENT_METRIC
        metric = {"PredefinedMetricSpecification": {"PredefinedMetricType": kind}}
    return {
        "PolicyName": f"{name}-concurrency",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": autoscaling.target_concurrency,
            **metric,
            "ScaleInCooldown": autoscaling.scale_in_cooldown_s,
            "ScaleOutCooldown": autoscaling.scale_out_cooldown_s,
        },
    }


def _step_from_zero(name: str) -> Request:
    return {
        "PolicyName": f"{name}-from-zero",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Maximum",
            "Cooldown": 60,
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
        },
    }


def _alarm(name: str, endpoint_name: str, component_name: str | None) -> Request:
    """Requests that found no copy call the step policy; asynchronous ones wait in the backlog meanwhile."""
    metric = "HasBacklogWithoutCapacity" if component_name is None else "NoCapacityInvocationFailures"
    dimension = (
        {"Name": "EndpointName", "Value": endpoint_name}
        if component_name is None
        else {"Name": "InferenceComponentName", "Value": component_name}
    )
    return {
        "AlarmName": f"{name}-from-zero",
        "AlarmActions": [POLICY_ARN],
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": [dimension],
        "Statistic": "Maximum",
        "Period": 60 if component_name is None else 30,
        "EvaluationPeriods": 1,
        "DatapointsToAlarm": 1,
        "Threshold": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
    }


def _check(autoscaling: Autoscaling) -> None:
    if not 0 < autoscaling.min_copies <= autoscaling.max_copies:
        raise ConfigurationError(
            f"min_copies = {autoscaling.min_copies} must be at least 1 and at most max_copies = "
            f"{autoscaling.max_copies}; for zero give scale_to_zero=True"
        )
    if autoscaling.target_concurrency <= 0:
        raise ConfigurationError(f"target_concurrency = {autoscaling.target_concurrency} must be above 0")
