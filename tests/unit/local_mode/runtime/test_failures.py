"""The texts of errors keep their limits whatever a container says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from local_mode.contracts import ServiceError, Target
from local_mode.runtime import failures
from local_mode.runtime.failures import ErrorAnswer

TARGET = Target(
    base_url="http://127.0.0.1:1",
    variant="AllTraffic",
    hostname="primary",
    log_stream_arn="arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/e:log-stream:AllTraffic/i-1",
)


@given(st.one_of(st.binary(max_size=3000), st.text(max_size=3000).map(str.encode)), st.integers(300, 599))
def test_message_has_at_most_2048_characters(body: bytes, status: int) -> None:
    error = failures.container_answered(TARGET, status, body)
    assert len(error.message) <= 2048
    assert error.message.endswith("in account 123456789012 for more information.")
    assert ("OriginalMessage" in error.members) == (" with message " in error.message)
    answer = ErrorAnswer.of(error, "r")
    assert answer.status == 424
    assert len(answer.body) < 20_000


def test_log_of_the_message() -> None:
    error = failures.container_answered(TARGET, 500, b"no")
    assert (
        "https://eu-west-1.console.aws.amazon.com/cloudwatch/home?region=eu-west-1"
        "#logEventViewer:group=/aws/sagemaker/Endpoints/e in account" in error.message
    )


def test_arn_of_no_known_form_breaks_nothing() -> None:
    target = Target(base_url="", variant="v", hostname="primary", log_stream_arn="local")
    assert (
        "Received server error (500) from primary" in failures.container_answered(target, 500, b"x").message
    )


def test_errors_of_the_stores_get_the_runtimes_name() -> None:
    answer = ErrorAnswer.of(ServiceError("ValidationException", "m"), "r")
    assert dict(answer.headers)["x-amzn-errortype"] == "ValidationError"
