"""Running the endpoint without SageMaker: an emulator of its hosting, and the embedded demo model.

    with local_mode.running() as local:
        local.client("sagemaker").create_model(...)

`local_mode.session()` gives clients of the emulator that `textgen-endpoint local up` has started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_mode.sessions import LocalSession, NotRunning, running, session

__all__ = ["LocalSession", "NotRunning", "running", "session"]


def __getattr__(name: str) -> Any:
    # Who runs only the demo model needs none of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from local_mode import sessions

    return getattr(sessions, name)
