"""What each operation of the control plane does to the resources, and what it asks of hosting. Knows no protocol."""

from __future__ import annotations

from local_mode.contracts import Hosting
from local_mode.control.operations.components import Components
from local_mode.control.operations.configs import Configs
from local_mode.control.operations.endpoints import Endpoints
from local_mode.control.operations.models import Models
from local_mode.control.operations.tags import Tags
from local_mode.control.protocol import Operation
from local_mode.control.resources import SqliteResources


def operations(resources: SqliteResources, hosting: Hosting) -> dict[str, Operation]:
    """Every emulated operation by its name in the service model."""
    models = Models(resources)
    configs = Configs(resources)
    endpoints = Endpoints(resources, hosting)
    components = Components(resources, hosting)
    tags = Tags(resources)
    return {
        "AddTags": tags.add,
        "CreateEndpoint": endpoints.create,
        "CreateEndpointConfig": configs.create,
        "CreateInferenceComponent": components.create,
        "CreateModel": models.create,
        "DeleteEndpoint": endpoints.delete,
        "DeleteEndpointConfig": configs.delete,
        "DeleteInferenceComponent": components.delete,
        "DeleteModel": models.delete,
        "DeleteTags": tags.delete,
        "DescribeEndpoint": endpoints.describe,
        "DescribeEndpointConfig": configs.describe,
        "DescribeInferenceComponent": components.describe,
        "DescribeModel": models.describe,
        "ListEndpointConfigs": configs.listed,
        "ListEndpoints": endpoints.listed,
        "ListInferenceComponents": components.listed,
        "ListModels": models.listed,
        "ListTags": tags.listed,
        "UpdateEndpoint": endpoints.update,
        "UpdateEndpointWeightsAndCapacities": endpoints.update_weights_and_capacities,
        "UpdateInferenceComponent": components.update,
        "UpdateInferenceComponentRuntimeConfig": components.update_runtime_config,
    }
