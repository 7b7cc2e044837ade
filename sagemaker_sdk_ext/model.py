"""`TextGenModel`: from arguments like `HuggingFaceModel`'s and typed options to an endpoint, on either SDK line or boto3."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sagemaker_sdk_ext import arguments
from sagemaker_sdk_ext.autoscaling import Autoscaling
from sagemaker_sdk_ext.backends import Backend, choose_line, create_backend
from sagemaker_sdk_ext.backends.plain import boto_session
from sagemaker_sdk_ext.config_source import ConfigUnreachable
from sagemaker_sdk_ext.deployment import (
    ComponentResources,
    Deployment,
    DeploymentRequests,
    build_requests,
    container_definition,
)
from sagemaker_sdk_ext.errors import ConfigurationError
from sagemaker_sdk_ext.images import get_textgen_image_uri
from sagemaker_sdk_ext.instances import gpu_family, is_local
from sagemaker_sdk_ext.options import MODEL_NAMES, build_environment
from sagemaker_sdk_ext.planner import Plan, plan
from sagemaker_sdk_ext.predictor import TextGenPredictor
from sagemaker_sdk_ext.rollout import apply_scaling, roll_out, take_down

_LOGGER = logging.getLogger(__name__)
_DEMO = "demo"


class TextGenModel:
    """A model in the textgen image.

    `model_data` is an s3:// URI (a model.tar.gz, or a prefix with uncompressed files) or SageMaker's S3DataSource mapping,
    `model_id` a Hub id; with neither, `env` has to name the model. `options` are those of `supported_options()`, such as
    `max_total_tokens=8192`. `sdk` is "2", "3" or "boto3"; absent: what the session belongs to or what is installed.
    Raises `ConfigurationError` for what would not start; nothing is created before `deploy`.
    """

    def __init__(
        self,
        role: str | None = None,
        model_data: str | Mapping[str, Any] | None = None,
        image_uri: str | None = None,
        *,
        model_id: str | None = None,
        env: Mapping[str, Any] | None = None,
        name: str | None = None,
        vpc_config: Mapping[str, Any] | None = None,
        enable_network_isolation: bool | None = None,
        sagemaker_session: Any = None,
        predictor_cls: Callable[..., Any] | None = None,
        image_config: Mapping[str, Any] | None = None,
        additional_model_data_sources: Sequence[Mapping[str, Any]] | None = None,
        model_server_workers: int | None = None,
        entry_point: str | None = None,
        transformers_version: str | None = None,
        pytorch_version: str | None = None,
        py_version: str | None = None,
        sdk: str | None = None,
        **options: Any,
    ) -> None:
        if model_data is not None and model_id is not None:
            raise ConfigurationError(
                f"model_data and model_id = {model_id!r} name two models; give one of them"
            )
        if entry_point is not None:
            raise ConfigurationError(
                f"entry_point = {entry_point!r}: put code/inference.py into the model folder instead"
            )
        if model_server_workers is not None:
            options["api_workers"] = model_server_workers
        self.role = role
        self.model_data = model_data
        self.model_id = model_id
        self.image_uri = image_uri
        self.env = dict(env or {})
        self.options = options
        self.name = name
        self.vpc_config = vpc_config
        self.enable_network_isolation = bool(enable_network_isolation)
        self.sagemaker_session = sagemaker_session
        self.predictor_cls = predictor_cls
        self.image_config = image_config
        self.additional_model_data_sources = tuple(additional_model_data_sources or ())
        self.sdk = sdk
        self.endpoint_name: str | None = None
        self.component_name: str | None = None
        self.requests: DeploymentRequests | None = None
        """What `deploy` created, and `delete_endpoint` takes back."""
        ignored = {"transformers_version": transformers_version, "pytorch_version": pytorch_version}
        for argument, value in {**ignored, "py_version": py_version}.items():
            if value is not None:
                _LOGGER.warning("%s = %r is ignored: the image has its own", argument, value)
        self._environment(asynchronous=False)

    def plan(self, instance_type: str | None = None) -> Plan:
        """What the model needs and where it fits. Raises `ConfigUnreachable` when config.json cannot be read."""
        source = self._config_source()
        if source is None:
            raise ConfigUnreachable(
                "this model has no config.json that could be read; plan with a folder or a mapping"
            )
        return plan(
            source,
            instance_type,
            max_total_tokens=self.options.get("max_total_tokens"),
            num_gpus=self.options.get("num_gpus"),
            dtype=self.options.get("dtype"),
            revision=self.options.get("revision"),
            token=self.options.get("hf_token") or self.env.get("HF_TOKEN"),
            boto_session=None if self.sagemaker_session is None else boto_session(self.sagemaker_session),
        )

    def deploy(
        self,
        initial_instance_count: int = 1,
        instance_type: str | None = None,
        *,
        endpoint_name: str | None = None,
        tags: Any = None,
        wait: bool = True,
        async_inference_config: Any = None,
        volume_size: int | None = None,
        model_data_download_timeout: int | None = None,
        container_startup_health_check_timeout: int | None = None,
        inference_ami_version: str | None = None,
        routing_config: Any = None,
        managed_instance_scaling: Mapping[str, Any] | None = None,
        endpoint_type: Any = None,
        inference_component_name: str | None = None,
        resources: Any = None,
        autoscaling: Autoscaling | Mapping[str, Any] | None = None,
        scale_to_zero: bool = False,
        kms_key: str | None = None,
        data_capture_config: Any = None,
        model_plan: Plan | None = None,
        allow_misfit: bool = False,
        poll_s: float = 5.0,
    ) -> Any:
        """Create model, configuration, endpoint and, where asked for, component and scaling; a predictor.

        A component is created when the endpoint is in service, so that its creation waits for that even with `wait=False`.
        `model_plan` replaces the one made from config.json, which is made where that can be read; a model that cannot fit is
        refused unless `allow_misfit`. Raises `ConfigurationError` before anything is created, `DeploymentFailed` after.
        """
        if instance_type is None:
            raise ConfigurationError("instance_type is missing; model.plan() lists those that fit")
        found = self._checked_plan(instance_type, model_plan, allow_misfit)
        settings = arguments.endpoint_settings(
            tags=tags,
            async_inference_config=async_inference_config,
            routing_config=routing_config,
            data_capture_config=data_capture_config,
            scaling=autoscaling,
        ) | {
            "instance_type": instance_type,
            "initial_instance_count": initial_instance_count,
            "kms_key": kms_key,
            "volume_size_gb": volume_size,
            "download_timeout_s": model_data_download_timeout,
            "startup_timeout_s": container_startup_health_check_timeout,
            "ami_version": inference_ami_version,
            "managed_instance_scaling": managed_instance_scaling,
            "scale_to_zero": scale_to_zero,
        }
        component = arguments.is_component_based(endpoint_type) or inference_component_name is not None
        self._name(settings, endpoint_name, inference_component_name, component)
        self._complete(settings, arguments.component_resources(resources), found)
        return self._create(settings, wait=wait, poll_s=poll_s)

    def delete_endpoint(self, *, poll_s: float = 5.0) -> None:
        """Delete what `deploy` created: scaling, component, endpoint, configuration and model; again: nothing."""
        if self.requests is None:
            return
        instance_type = self.requests.endpoint_config["ProductionVariants"][0]["InstanceType"]
        take_down(self._backend(instance_type), self.requests, poll_s=poll_s)
        self.requests = None

    def as_sagemaker_model(self, instance_type: str) -> Any:
        """A `sagemaker.model.Model` of SDK 2 with the same container: for batch transform, pipelines and registries."""
        from sagemaker_sdk_ext.backends.sdk2 import Sdk2Backend, model_class

        backend = Sdk2Backend(self.sagemaker_session, instance_type)
        settings: dict[str, Any] = {
            "model_name": self.name or _unique("textgen"),
            "endpoint_name": _unique("textgen"),
            "environment": self._environment(asynchronous=False),
            "instance_type": instance_type,
        }
        deployment = self._deployment(backend, settings)
        return model_class()(
            container_definition(deployment),
            role=deployment.role_arn,
            name=self.name,
            vpc_config=self.vpc_config,
            enable_network_isolation=self.enable_network_isolation,
            sagemaker_session=backend.session,
            predictor_cls=self.predictor_cls,
        )

    def _backend(self, instance_type: str) -> Backend:
        line = choose_line(self.sdk, self.sagemaker_session)
        if is_local(instance_type):
            if line != "2":
                raise ConfigurationError(
                    f"instance_type = {instance_type!r} is SDK 2's local mode; without it use `textgen-endpoint local up`"
                )
            if not isinstance(self.model_data, str):
                raise ConfigurationError(
                    f"instance_type = {instance_type!r}: SDK 2's local mode needs model_data as one file:// or s3:// URI"
                )
        return create_backend(line, self.sagemaker_session, instance_type)

    def _deployment(self, backend: Backend, settings: Mapping[str, Any]) -> Deployment:
        if self.role is None:
            raise ConfigurationError(
                "role is missing: the name or ARN of the IAM role that SageMaker assumes"
            )
        image = self.image_uri or get_textgen_image_uri(
            region=backend.region, cpu=gpu_family(settings["instance_type"]) is None
        )
        return Deployment(
            image_uri=image,
            role_arn=backend.role_arn(self.role),
            model_data=self.model_data,
            additional_model_data_sources=self.additional_model_data_sources,
            vpc_config=self.vpc_config,
            enable_network_isolation=self.enable_network_isolation,
            image_config=self.image_config,
            **settings,
        )

    def _environment(self, *, asynchronous: bool) -> dict[str, str]:
        environment = build_environment(
            self.options, self.env, model_id=self.model_id, asynchronous=asynchronous
        )
        if self.model_data is None and not any(environment.get(name, "").strip() for name in MODEL_NAMES):
            raise ConfigurationError("which model? give model_data=, model_id= or env={'HF_MODEL_ID': ...}")
        if self.enable_network_isolation and self.model_data is None:
            raise ConfigurationError(
                "enable_network_isolation=True cuts the container off from the Hub; give the model as model_data="
            )
        return environment

    def _create(self, settings: Mapping[str, Any], *, wait: bool, poll_s: float) -> Any:
        """A predictor of what was created."""
        if settings["autoscaling"] is not None and not wait:
            raise ConfigurationError(
                "autoscaling is set when the endpoint is in service, which needs wait=True"
            )
        backend = self._backend(settings["instance_type"])
        requests = build_requests(self._deployment(backend, settings))
        roll_out(backend, requests, wait=wait, poll_s=poll_s, made=self._made)
        self.requests = requests
        apply_scaling(backend, requests.scaling)
        self.endpoint_name, self.component_name = settings["endpoint_name"], settings["component_name"]
        return self._predictor(backend)

    def _made(self, requests: DeploymentRequests) -> None:
        """What a failed or interrupted deployment leaves can be deleted."""
        self.requests = requests

    def _name(
        self, settings: dict[str, Any], endpoint_name: str | None, component_name: str | None, component: bool
    ) -> None:
        settings["model_name"] = self.name or _unique("textgen")
        settings["endpoint_name"] = endpoint_name or _unique(self.name or "textgen")
        settings["component_name"] = (
            (component_name or _unique(self.name or "textgen")) if component else None
        )

    def _complete(self, settings: dict[str, Any], given: ComponentResources, found: Plan | None) -> None:
        """What follows from the rest: environment, time limits, and the GPUs that a component shards over."""
        settings["environment"] = self._environment(asynchronous=settings["asynchronous"] is not None)
        settings["resources"] = given
        if found is not None:
            settings["startup_timeout_s"] = settings["startup_timeout_s"] or found.startup_timeout_s
            if self.model_data is not None:
                settings["download_timeout_s"] = settings["download_timeout_s"] or found.download_timeout_s
        on_gpus = gpu_family(settings["instance_type"]) is not None
        if settings["component_name"] and on_gpus and given.num_accelerators is None:
            fit = found.fit_for(settings["instance_type"]) if found is not None else None
            ranks = self.options.get("num_gpus") or (fit.num_ranks if fit is not None else 1)
            settings["resources"] = dataclasses.replace(given, num_accelerators=ranks)

    def _config_source(self) -> Any:
        """Where config.json may be read: the model's prefix, folder, Hub id."""
        if isinstance(self.model_data, Mapping):
            return self.model_data.get("S3DataSource", {}).get("S3Uri")
        named = (
            self.model_data
            or self.model_id
            or next((self.env[n] for n in MODEL_NAMES if n in self.env), None)
        )
        return None if named == _DEMO else named

    def _checked_plan(self, instance_type: str, given: Plan | None, allow_misfit: bool) -> Plan | None:
        """None where config.json cannot be read; the deployment goes on without."""
        found = given
        if found is None and self._config_source() is not None and not is_local(instance_type):
            try:
                found = self.plan(instance_type)
            except ConfigUnreachable as error:
                _LOGGER.warning("whether the model fits on %s is not checked: %s", instance_type, error)
        if found is not None and not allow_misfit:
            found.require(instance_type)
        return found

    def _predictor(self, backend: Backend) -> Any:
        session = getattr(backend, "session", None) or self.sagemaker_session
        make: Callable[..., Any] = self.predictor_cls or TextGenPredictor
        if self.predictor_cls is None and backend.line == "2":
            from sagemaker_sdk_ext.backends.sdk2 import predictor_class

            make = predictor_class()
        options = {"component_name": self.component_name} if self.component_name else {}
        return make(self.endpoint_name, session, **options)


def _unique(base: str) -> str:
    """A name of at most 63 characters that no other has."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{base[:38].rstrip('-')}-{stamp}-{secrets.token_hex(3)}"
