"""SageMaker's Python SDK 2: its sessions (local mode too), its `Model` and its `Predictor`, subclassed when first needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from sagemaker_sdk_ext.backends import Line, Request
from sagemaker_sdk_ext.backends.plain import PlainBackend
from sagemaker_sdk_ext.errors import ConfigurationError
from sagemaker_sdk_ext.instances import is_local
from sagemaker_sdk_ext.predictor import TextGenPredictor

_OURS = (
    "generate",
    "chat",
    "stream",
    "stream_text",
    "session",
    "generate_async",
    "with_adapter",
)


class Sdk2Backend(PlainBackend):
    """The requests go through the session's `sagemaker_client`, which local mode replaces by its own."""

    line: Line = "2"

    def __init__(self, session: Any, instance_type: str) -> None:
        self.session = session if session is not None else _new_session(instance_type)
        super().__init__(self.session)

    def role_arn(self, role: str) -> str:
        return str(self.session.expand_role(role))


def _new_session(instance_type: str) -> Any:
    sagemaker = _sdk()
    if is_local(instance_type):
        return import_module("sagemaker.local").LocalSession()
    return sagemaker.Session()


@cache
def model_class() -> type:
    """A `sagemaker.model.Model` whose container definition is ours, for pipelines, batch transform and registries."""
    _sdk()
    base = import_module("sagemaker.model").Model

    class TextGenSdkModel(base):  # type: ignore[misc, valid-type]
        def __init__(self, container: Request, **options: Any) -> None:
            super().__init__(
                image_uri=container["Image"],
                model_data=container.get("ModelDataUrl") or container.get("ModelDataSource"),
                env=container.get("Environment", {}),
                predictor_cls=options.pop("predictor_cls", None) or predictor_class(),
                **options,
            )
            self._container = container

        def prepare_container_def(self, *args: Any, **kwargs: Any) -> Request:
            return dict(self._container)

    TextGenSdkModel.__qualname__ = TextGenSdkModel.__name__
    return TextGenSdkModel


@cache
def predictor_class() -> type:
    """A `sagemaker.predictor.Predictor` that also has the methods of `TextGenPredictor`."""
    _sdk()
    base = import_module("sagemaker.predictor").Predictor
    new_serializer = import_module("sagemaker.serializers").JSONSerializer
    new_deserializer = import_module("sagemaker.deserializers").JSONDeserializer

    class TextGenSdkPredictor(base):  # type: ignore[misc, valid-type]
        """`textgen` is the `TextGenPredictor` that generate, chat, stream and the like are handed to."""

        def __init__(
            self,
            endpoint_name: str,
            sagemaker_session: Any = None,
            serializer: Any = None,
            deserializer: Any = None,
            component_name: str | None = None,
            **options: Any,
        ) -> None:
            super().__init__(
                endpoint_name,
                sagemaker_session,
                serializer=serializer or new_serializer(),
                deserializer=deserializer or new_deserializer(),
                component_name=component_name,
                **options,
            )
            self.textgen = TextGenPredictor(
                endpoint_name, self.sagemaker_session, component_name=component_name
            )

        def __getattr__(self, name: str) -> Any:
            if name in _OURS:
                return getattr(self.textgen, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    TextGenSdkPredictor.__qualname__ = TextGenSdkPredictor.__name__
    return TextGenSdkPredictor


def _sdk() -> Any:
    try:
        sagemaker = import_module("sagemaker")
    except ImportError as error:
        raise ConfigurationError("sdk = '2' needs the SDK: pip install 'sagemaker<3'") from error
    if not hasattr(sagemaker, "Session"):
        raise ConfigurationError("sdk = '2', but SDK 3 is installed; give sdk='3' or install 'sagemaker<3'")
    return sagemaker
