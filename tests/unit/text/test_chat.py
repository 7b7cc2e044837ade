"""A chat becomes a prompt, a grammar and a reader of the answer, or a refusal that says why."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from serving.config import ModelConfig
from serving.errors import ConfigError, ContextTooLong, InvalidRequest, TemplateError, ToolError
from serving.messages import SequenceOutput
from serving.sampling_params import Grammar, SamplingParams
from serving.text.chat import ChatPreparer, ChatRequest, PreparedChat
from serving.text.chat_template import ChatTemplate
from serving.text.processor import TextProcessor
from serving.text.sequence_text import SequenceText
from tests.unit.text.vocabularies import byte_level, of_pieces, write_folder

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
HERMES = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + CHATML + "{# <tool_call> #}"
THINKING = HERMES + "{# </think> #}"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "count",
        "description": "Counts boats",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}
SCHEMA = Grammar(kind="json_schema", source='{"type": "object"}')
USER = {"role": "user", "content": "town"}


def processor_of(folder: Path, template: str | None, **options: Any) -> TextProcessor:
    config = {} if template is None else {"chat_template": template}
    return TextProcessor.from_dir(write_folder(folder, byte_level(), tokenizer_config=config), **options)


def answer_of(prepared: PreparedChat, text: str) -> tuple[str, str, list[tuple[str, str]], str | None]:
    """Content, reasoning, calls and finish reason of an answer that is `text`."""
    sequence = SequenceText(of_pieces(text), SamplingParams())
    answer = prepared.new_answer(sequence)
    tokens = sequence.push(
        SequenceOutput(request_id="r", token_ids=[0], logprobs=[-1.0], finish_reason="stop_token")
    )
    delta = answer.take(tokens, final=True)
    calls: dict[int, tuple[str, str]] = {}
    for piece in delta.tool_calls:
        name, arguments = calls.get(piece.index, ("", ""))
        calls[piece.index] = (name + (piece.name or ""), arguments + piece.arguments)
    return delta.content, delta.reasoning, list(calls.values()), answer.finish_reason


def test_a_plain_chat(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, CHATML)
    prepared = processor.prepare_chat(ChatRequest(messages=[USER]))
    assert prepared.prompt_text == "<s>user: town</s><s>assistant: "
    assert prepared.prompt_token_ids == processor.prepare(prepared.prompt_text, add_special_tokens=False)
    assert prepared.grammar is None
    assert answer_of(prepared, "hello") == ("hello", "", [], "stop")
    without = processor.prepare_chat(ChatRequest(messages=[USER], add_generation_prompt=False))
    assert without.prompt_text == "<s>user: town</s>"


def test_the_final_message_is_continued(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, CHATML)
    chat = [USER, {"role": "assistant", "content": "The town "}]
    prepared = processor.prepare_chat(ChatRequest(messages=chat, continue_final_message=True))
    assert prepared.prompt_text == "<s>user: town</s><s>assistant: The town "
    with pytest.raises(TemplateError, match="no final message"):
        processor.prepare_chat(ChatRequest(messages=[], continue_final_message=True))
    chat[-1] = {"role": "assistant", "content": "a</s>b"}
    prepared = processor.prepare_chat(ChatRequest(messages=chat, continue_final_message=True))
    assert prepared.prompt_text.endswith("assistant: a</s>b")


def test_a_template_that_changes_the_final_message_cannot_continue_it(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(TemplateError, match="cannot be continued"):
        processor.prepare_chat(ChatRequest(messages=[USER], continue_final_message=True))


def test_offered_tools_are_shown_and_their_calls_are_read(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, HERMES)
    prepared = processor.prepare_chat(ChatRequest(messages=[USER], tools=[TOOL]))
    assert prepared.prompt_text.startswith(json.dumps(TOOL))
    called = answer_of(prepared, '<tool_call>\n{"name": "count", "arguments": {"n": 3}}\n</tool_call>')
    assert called == ("", "", [("count", '{"n": 3}')], "tool_calls")
    assert answer_of(prepared, "no call") == ("no call", "", [], "stop")


@pytest.mark.parametrize(
    "choice", [{"tool_choice": "required"}, {"tool_choice": "count", "named_tool": True}]
)
def test_a_forced_call_has_a_grammar(tmp_path: Path, choice: dict[str, Any]) -> None:
    processor = processor_of(tmp_path, HERMES)
    prepared = processor.prepare_chat(ChatRequest(messages=[USER], tools=[TOOL, OTHER], **choice))
    assert prepared.grammar is not None and "count" in prepared.grammar.source
    assert ("other" in prepared.grammar.source) == (choice["tool_choice"] == "required")
    with pytest.raises(ToolError, match="mutually exclusive"):
        processor.prepare_chat(ChatRequest(messages=[USER], tools=[TOOL], response_grammar=SCHEMA, **choice))
    with pytest.raises(ToolError):
        processor.prepare_chat(ChatRequest(messages=[USER], **choice))


def test_without_grammars_calls_cannot_be_forced(tmp_path: Path) -> None:
    processor = processor_of(tmp_path, HERMES, grammars=False)
    with pytest.raises(ToolError, match="GRAMMAR_SUPPORT"):
        processor.prepare_chat(ChatRequest(messages=[USER], tools=[TOOL], tool_choice="required"))
    prepared = processor.prepare_chat(ChatRequest(messages=[USER], tools=[TOOL]))
    assert prepared.grammar is None
    called = answer_of(prepared, '<tool_call>\n{"name": "count", "arguments": {"n": 3}}\n</tool_call>')
    assert called[2:] == ([("count", '{"n": 3}')], "tool_calls")


def test_no_choice_means_no_tools(tmp_path: Path) -> None:
    prepared = processor_of(tmp_path, HERMES).prepare_chat(
        ChatRequest(messages=[USER], tools=[TOOL], tool_choice="none")
    )
    assert "count" not in prepared.prompt_text and prepared.grammar is None


@pytest.mark.parametrize("tool_prompt", [None, "Use them well."])
def test_a_template_without_tools_gets_them_in_the_last_question(
    tmp_path: Path, tool_prompt: str | None
) -> None:
    chat = [USER, {"role": "assistant", "content": "x"}, {"role": "user", "content": "Count</s>"}]
    processor = processor_of(tmp_path, CHATML)
    prepared = processor.prepare_chat(ChatRequest(messages=chat, tools=[TOOL], tool_prompt=tool_prompt))
    last = prepared.prompt_text.rsplit("user: ", 1)[1]
    assert last.startswith("Count") and "Counts boats" in last and (tool_prompt or "") in last
    assert prepared.prompt_text.startswith("<s>user: town</s>")


def test_reasoning_is_free_and_the_answer_behind_it_constrained(tmp_path: Path) -> None:
    plain = processor_of(tmp_path / "plain", HERMES)
    chat = ChatRequest(messages=[USER], response_grammar=SCHEMA)
    assert plain.prepare_chat(chat).grammar == SCHEMA
    thinking = processor_of(tmp_path / "thinking", THINKING)
    prepared = thinking.prepare_chat(chat)
    assert prepared.grammar is not None and prepared.grammar.kind == "lark"
    assert answer_of(prepared, "<think>hm</think>{}") == ("{}", "hm", [], "stop")
    config = ModelConfig(reasoning_format="none")
    off = processor_of(tmp_path / "off", THINKING, config=config)
    assert off.prepare_chat(chat).grammar == SCHEMA


def test_formats_that_do_not_exist_end_the_start(tmp_path: Path) -> None:
    for config in (ModelConfig(tool_format="x"), ModelConfig(reasoning_format="x")):
        with pytest.raises(ConfigError, match="FORMAT is 'x'"):
            processor_of(tmp_path, CHATML, config=config)


def test_the_users_template_is_used(tmp_path: Path) -> None:
    config = ModelConfig(chat_template="{{ 'mine: ' ~ messages[0].content }}")
    prepared = processor_of(tmp_path, CHATML, config=config).prepare_chat(ChatRequest(messages=[USER]))
    assert prepared.prompt_text == "mine: town"


def test_a_missing_template_is_said_at_the_start_and_to_every_chat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        processor = processor_of(tmp_path, None)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "no chat template" in caplog.text and not processor.has_chat_template
    with pytest.raises(TemplateError, match="template not found"):
        processor.prepare_chat(ChatRequest(messages=[USER]))


@pytest.mark.parametrize(
    ("template", "cause"), [("{% for %}", "Expected"), ("{{ messages[0].nothing.more }}", "nothing")]
)
def test_a_broken_template_is_said_at_the_start_and_to_every_chat(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str, cause: str
) -> None:
    with caplog.at_level(logging.INFO):
        processor = processor_of(tmp_path, template)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert cause in caplog.text
    assert processor.prepare("town")
    with pytest.raises(TemplateError, match=cause):
        processor.prepare_chat(ChatRequest(messages=[USER]))


def test_an_image_is_refused_by_its_place(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "http://x"}}]
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[1\]"):
        processor_of(tmp_path, CHATML).prepare_chat(
            ChatRequest(messages=[{"role": "user", "content": parts}])
        )


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        processor_of(tmp_path, CHATML).prepare_chat(
            ChatRequest(messages=[{"role": "user", "content": "a\ud800"}])
        )


# ------------------------------------------------------------------ places of tokens


@pytest.mark.parametrize("text", ["the town", "家族 👍🏽 town", "", "a<s>b", "é" * 5000])
def test_every_token_has_its_place_in_bytes(tmp_path: Path, text: str) -> None:
    processor = processor_of(tmp_path, CHATML)
    spans = processor.tokenize(text, add_special_tokens=False)
    assert [span.id for span in spans] == processor.tokenizer.encode(text, add_special_tokens=False)
    data = text.encode()
    assert all(data[span.start : span.stop].decode() == span.text for span in spans)
    covered = {byte for span in spans for byte in range(span.start, span.stop)}
    assert covered == set(range(len(data)))


def test_a_prompt_that_is_too_long_is_not_tokenized() -> None:
    encoded: list[str] = []

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return list(text.encode())

    chats = ChatPreparer(ChatTemplate(HERMES, {}), encode=encode, special_ids={})
    chat = ChatRequest(messages=[USER], tools=[{**TOOL, "description": "x" * 1000}])
    num_chars = len(chats.prepare(chat).prompt_text)
    assert chats.prepare(chat, max_chars=num_chars).prompt_text
    encoded.clear()
    with pytest.raises(ContextTooLong, match=f"{num_chars} characters, at most {num_chars - 1} "):
        chats.prepare(chat, max_chars=num_chars - 1)
    assert encoded == []
