"""SageMaker's service model as botocore ships it: shapes of operations, and which members a reply shows."""

from __future__ import annotations

from functools import cache
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

from local_mode.contracts import Record


@cache
def _model() -> ServiceModel:
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


def is_known(operation: str) -> bool:
    return operation in _model().operation_names


def input_shape(operation: str) -> Shape:
    return _model().operation_model(operation).input_shape


def output_shape(operation: str) -> Shape | None:
    """None for an operation that answers with nothing."""
    return _model().operation_model(operation).output_shape


def has_output(operation: str) -> bool:
    return is_known(operation) and output_shape(operation) is not None


def shown(shape: Shape | None, record: Record) -> Record:
    """The members of `record` that `shape` has, all the way down."""
    kept: Record = _kept(shape, record) if shape is not None else {}
    return kept


def _kept(shape: Shape, value: Any) -> Any:
    if shape.type_name == "structure":
        return {
            name: _kept(shape.members[name], member)
            for name, member in value.items()
            if name in shape.members
        }
    if shape.type_name == "list":
        return [_kept(shape.member, item) for item in value]
    return value
