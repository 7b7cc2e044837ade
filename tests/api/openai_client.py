"""The real OpenAI client on a fake engine, and scripts that say what the engine generates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import openai

from serving.api.app import create_app
from serving.config import HttpConfig, LimitsConfig, ModelConfig, ServerConfig, Stage
from serving.messages import SequenceOutput
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatPreparer, ChatRequest, PreparedChat
from serving.text.chat_template import ChatTemplate
from tests.api.fake_engine import CHAT_TEMPLATE, EOS, FakeEngine, FakeStream, FakeText, Script

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BOTH = [CHAT, COMPLETIONS]
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {CHAT: {"messages": MESSAGES}, COMPLETIONS: {"prompt": "hi"}}


class OpenAIFront:
    """`client` raises `openai.APIStatusError` on refusals and never tries twice."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        text: FakeText | None = None,
        limits: LimitsConfig | None = None,
        model: ModelConfig | None = None,
        http: HttpConfig | None = None,
        stage: str = "ready",
    ) -> None:
        self.engine = FakeEngine(script)
        shown = text or FakeText()
        config = ServerConfig(
            limits=limits or LimitsConfig(), model=model or ModelConfig(), http=http or HttpConfig()
        )
        self.app = create_app(self.engine, lambda: shown, config, lambda: Stage(stage=stage))
        self.client = openai.OpenAI(
            base_url="http://front/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx2.Client(transport=httpx2.WSGITransport(self.app)),
        )


class ToolText(FakeText):
    """A model that writes `<tool_call>` blocks and, with `thinks`, `<think>` before its answer. `asked` is the last chat."""

    asked: ChatRequest

    def __init__(self, *, thinks: bool = False, grammars: bool = True) -> None:
        super().__init__()
        self._chats = ChatPreparer(
            ChatTemplate(CHAT_TEMPLATE, {"eos_token": "</s>"}),
            encode=lambda text: list(text.encode()),
            special_ids={"</s>": EOS},
            tool_format="hermes",
            reasoning_format="think" if thinks else "none",
            grammars=grammars,
        )

    def prepare_chat(self, chat: ChatRequest, *, max_chars: int | None = None) -> PreparedChat:
        self.asked = chat
        return super().prepare_chat(chat, max_chars=max_chars)


def says(
    *texts: str, finish: str = "eos_token", cut: int = 1, **fields: object
) -> Callable[[FakeStream], None]:
    """Sequence i of every prompt says `texts[i]` in portions of `cut` bytes, all sequences in turn. With `eos_token` an
    EOS follows.
    """

    def script(stream: FakeStream) -> None:
        stream.accept()
        ids = [list(text.encode()) + ([EOS] if finish == "eos_token" else []) for text in texts]
        first: dict[str, object] = dict(fields)
        for start in range(0, max(map(len, ids)), cut):
            for index, sequence in enumerate(ids[: stream.request.params.n]):
                part = sequence[start : start + cut]
                if not part:
                    continue
                stream.put(
                    SequenceOutput(
                        request_id=stream.request.request_id,
                        index=index,
                        token_ids=part,
                        logprobs=[-0.25] * len(part),
                        top_tokens=stream._top(part),
                        finish_reason=finish if start + cut >= len(sequence) else None,
                        **(first if index == 0 and start == 0 else {}),  # type: ignore[arg-type]
                    )
                )

    return script


def letters(stream: FakeStream) -> None:
    """The answer to a prompt is its text in capitals, with a digit for the sequence, until the shorter ones ended."""
    text = bytes(stream.request.prompt_token_ids).decode()
    says(*(f"{text.upper()}{i}" for i in range(stream.request.params.n)))(stream)


def refusal(front: OpenAIFront, path: str, fields: dict[str, Any], status: int = 400) -> dict[str, Any]:
    """The error object of a refused request, its shape checked; nothing reached the engine."""
    response = front.app.test_client().post(path, json={**BODIES[path], **fields})
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/json"
    assert len(response.data) < 1024
    error: dict[str, Any] = response.json["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]
    assert front.engine.requests == []
    return error


def params(front: OpenAIFront, path: str, fields: dict[str, Any]) -> SamplingParams:
    response = front.app.test_client().post(path, json={**BODIES[path], **fields})
    assert response.status_code == 200, response.get_data(as_text=True)
    return front.engine.requests[-1].params
