"""Prompts become ids that the engine can take, or a refusal that names the field."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import processors

from serving.errors import InvalidRequest, TemplateError
from serving.messages import SequenceOutput
from serving.sampling_params import SamplingParams
from serving.text.chat import ChatRequest
from serving.text.processor import TextProcessor
from tests.unit.text.vocabularies import byte_level, write_folder

CONFIG = {
    "bos_token": "<s>",
    "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
}
TOWN = ChatRequest(messages=[{"role": "user", "content": "town"}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return write_folder(tmp_path_factory.mktemp("model"), backend, tokenizer_config=CONFIG)


@pytest.fixture(scope="module")
def processor(folder: Path) -> TextProcessor:
    return TextProcessor.from_dir(folder)


def test_truncation_keeps_the_last_ids_of_the_full_encoding(processor: TextProcessor) -> None:
    full = processor.prepare("Once upon a time, in the town")
    assert full[0] == 0
    for count in range(1, len(full) + 3):
        assert processor.prepare("Once upon a time, in the town", truncate=count) == full[-count:]


@pytest.mark.parametrize("truncate", [0, -3])
def test_truncation_to_nothing_is_refused(processor: TextProcessor, truncate: int) -> None:
    with pytest.raises(InvalidRequest, match=f"`truncate` is {truncate}") as caught:
        processor.prepare("town", truncate=truncate)
    assert caught.value.field == "truncate"


def test_a_prompt_without_tokens_is_refused(processor: TextProcessor) -> None:
    assert processor.prepare("") == [0]
    with pytest.raises(InvalidRequest, match="no tokens"):
        processor.prepare("", add_special_tokens=False)


def test_ids_that_the_model_does_not_have_are_refused(folder: Path, processor: TextProcessor) -> None:
    ids = processor.prepare("town")
    size = len(processor.vocabulary)
    assert TextProcessor.from_dir(folder, vocab_size=size + 10).prepare("town") == ids
    assert TextProcessor.from_dir(folder, vocab_size=max(ids) + 1).prepare("town") == ids
    with pytest.raises(InvalidRequest, match=f"token {max(ids)}.*has {max(ids)} tokens"):
        TextProcessor.from_dir(folder, vocab_size=max(ids)).prepare("town")


def test_a_chat_becomes_ids_with_the_templates_own_special_tokens(processor: TextProcessor) -> None:
    chat = processor.prepare_chat(TOWN)
    assert processor.has_chat_template
    assert chat.prompt_text == "<s>town"
    assert chat.prompt_token_ids == processor.prepare("town")


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    processor = TextProcessor.from_dir(write_folder(tmp_path, byte_level()))
    assert not processor.has_chat_template
    with pytest.raises(TemplateError, match="Template error: template not found"):
        processor.prepare_chat(TOWN)


def test_from_prompt_to_text(processor: TextProcessor) -> None:
    prompt = processor.prepare("Once upon a time")
    generated = processor.prepare(" there was 家族 👍\nUser: no", add_special_tokens=False)
    sequence = processor.new_sequence(SamplingParams(stop=("\nUser:",)), prompt_token_ids=prompt)
    streamed = ""
    for token_id in generated:
        news = SequenceOutput(request_id="r", token_ids=[token_id], logprobs=[-1.0])
        streamed += "".join(token.text for token in sequence.push(news))
    assert streamed == sequence.text == " there was 家族 👍\nUser:"
    assert sequence.stopped
    tokens = processor.prompt_tokens(prompt, [None, *[-1.0] * (len(prompt) - 1)])
    assert "".join(token.text for token in tokens) == "<s>Once upon a time"


def test_an_empty_stop_string_is_refused_before_anything_is_generated(processor: TextProcessor) -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        processor.new_sequence(SamplingParams(stop=("",)))
