"""Deploying the image from SageMaker's SDKs and boto3. Knows the AWS APIs; imports nothing of `serving`.

No AWS SDK is imported before it is used.
"""

from sagemaker_sdk_ext.async_generation import AsyncGeneration
from sagemaker_sdk_ext.autoscaling import Autoscaling
from sagemaker_sdk_ext.bodies import Generated
from sagemaker_sdk_ext.config_source import ConfigUnreachable
from sagemaker_sdk_ext.decoder import LineSplitter, StreamDecoder, StreamEvent, Token, decode
from sagemaker_sdk_ext.deployment import ComponentResources, Deployment, DeploymentRequests, build_requests
from sagemaker_sdk_ext.errors import (
    AsyncGenerationFailed,
    BrokenStream,
    ConfigurationError,
    ContainerFailed,
    DeploymentFailed,
    EndpointError,
    GenerationError,
    Misfit,
    NoCapacity,
    Overloaded,
    RequestRefused,
    StreamError,
    TextGenError,
    TruncatedStream,
)
from sagemaker_sdk_ext.images import get_textgen_image_uri
from sagemaker_sdk_ext.invocation import RetryPolicy, runtime_client
from sagemaker_sdk_ext.model import TextGenModel
from sagemaker_sdk_ext.openai_route import bearer_token, openai_client
from sagemaker_sdk_ext.options import supported_options
from sagemaker_sdk_ext.planner import Fit, Plan, plan
from sagemaker_sdk_ext.predictor import TextGenPredictor
from sagemaker_sdk_ext.session import Session

__all__ = [
    "AsyncGeneration",
    "AsyncGenerationFailed",
    "Autoscaling",
    "BrokenStream",
    "ComponentResources",
    "ConfigUnreachable",
    "ConfigurationError",
    "ContainerFailed",
    "Deployment",
    "DeploymentFailed",
    "DeploymentRequests",
    "EndpointError",
    "Fit",
    "Generated",
    "GenerationError",
    "LineSplitter",
    "Misfit",
    "NoCapacity",
    "Overloaded",
    "Plan",
    "RequestRefused",
    "RetryPolicy",
    "Session",
    "StreamDecoder",
    "StreamError",
    "StreamEvent",
    "TextGenError",
    "TextGenModel",
    "TextGenPredictor",
    "Token",
    "TruncatedStream",
    "bearer_token",
    "build_requests",
    "decode",
    "get_textgen_image_uri",
    "openai_client",
    "plan",
    "runtime_client",
    "supported_options",
]
