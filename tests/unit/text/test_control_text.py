"""The spelling of a control token in anybody's text stays text; a chat without one has transformers' ids."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from serving.errors import InvalidRequest
from serving.text.chat import ChatRequest
from serving.text.control_text import MARK, ControlText, MarkedEncoder, unmarked
from serving.text.processor import TextProcessor
from tests.unit.text.vocabularies import byte_level, sentencepiece, write_folder

CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<<|im_end|>>"]
LLAMA = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"]
MISTRAL = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"]
DEEPSEEK = ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
FAMILIES = {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "deepseek": DEEPSEEK, "sentencepiece": None}

TEMPLATE = (
    "{{ START }}{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{{ extra }}"
    "{% for m in messages %}{{ START }}{{ m.role }}\n{{ m.name }}"
    "{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ END }}{% endfor %}"
)


def specials_of(family: str) -> list[str]:
    return FAMILIES[family] or ["<unk>", "<s>", "</s>"]


def backend_of(family: str) -> tokenizers.Tokenizer:
    return sentencepiece() if family == "sentencepiece" else byte_level(specials_of(family))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def processor(family: str, tmp_path_factory: pytest.TempPathFactory) -> TextProcessor:
    start, end = specials_of(family)[0], specials_of(family)[1]
    template = TEMPLATE.replace("START", repr(start)).replace("END", repr(end))
    folder = write_folder(
        tmp_path_factory.mktemp(family), backend_of(family), tokenizer_config={"chat_template": template}
    )
    return TextProcessor.from_dir(folder)


def special_ids(processor: TextProcessor, ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in processor.vocabulary.special_text]


def chat_with(text: str) -> ChatRequest:
    """`text` in every place that a client fills."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {text: [text]}}}
    schema = {"type": "object", "properties": {text: {"description": text, "type": "string"}}}
    return ChatRequest(
        messages=[
            {"role": "system", "content": text},
            {"role": "user", "content": text, "name": text},
            {"role": "assistant", "content": text, "tool_calls": [call]},
            {"role": "tool", "content": text, "tool_call_id": text},
            {
                "role": "user",
                "content": [{"type": "text", "text": f"a{text}"}, {"type": "text", "text": text}],
            },
        ],
        tools=[{"type": "function", "function": {"name": "f", "description": text, "parameters": schema}}],
        documents=[{"text": text}],
        template_variables={"extra": text},
    )


def test_no_spelling_in_any_place_becomes_a_token(family: str, processor: TextProcessor) -> None:
    expected = special_ids(processor, processor.prepare_chat(chat_with("plain")).prompt_token_ids)
    assert len(expected) == 11
    for spelling in specials_of(family):
        for text in (
            spelling,
            f"x{spelling}y",
            spelling * 3,
            f"{spelling[:3]}{spelling}",
            f"\n {spelling}\n",
        ):
            prepared = processor.prepare_chat(chat_with(text))
            assert special_ids(processor, prepared.prompt_token_ids) == expected, text
            assert MARK not in prepared.prompt_text
            assert text.strip() in prepared.prompt_text


def test_parts_cannot_be_joined_to_a_spelling(family: str, processor: TextProcessor) -> None:
    plain = ChatRequest(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * 2}])
    expected = special_ids(processor, processor.prepare_chat(plain).prompt_token_ids)
    for spelling in specials_of(family):
        for cut in range(1, len(spelling)):
            parts = [{"type": "text", "text": text} for text in (spelling[:cut], spelling[cut:])]
            prepared = processor.prepare_chat(ChatRequest(messages=[{"role": "user", "content": parts}]))
            assert special_ids(processor, prepared.prompt_token_ids) == expected
            assert spelling in prepared.prompt_text


def test_a_chat_without_spellings_has_the_ids_of_transformers(family: str, processor: TextProcessor) -> None:
    reference = PreTrainedTokenizerFast(tokenizer_object=backend_of(family))
    start, end = specials_of(family)[0], specials_of(family)[1]
    template = TEMPLATE.replace("START", repr(start)).replace("END", repr(end))
    for text in ("Once upon a time", " the town \n", "家族 👍🏽", "a > b [c] 1|2"):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "there"}]
        expected = reference.apply_chat_template(messages, chat_template=template, return_dict=False)
        assert processor.prepare_chat(ChatRequest(messages=messages)).prompt_token_ids == expected


def test_the_pieces_say_what_the_text_says(family: str, processor: TextProcessor) -> None:
    encode = MarkedEncoder(lambda text: processor.tokenizer.encode(text, add_special_tokens=False))
    control = ControlText(specials_of(family))
    for spelling in specials_of(family):
        text = f"the town{spelling}the boats {spelling}"
        marked = control.marked(text)
        ids = encode(marked)
        assert unmarked(marked) == text
        assert not special_ids(processor, ids)
        said = b"".join(processor.vocabulary.token_bytes[token_id] for token_id in ids).decode()
        assert said.lstrip() == text


def test_marks_of_a_client_are_taken_out() -> None:
    control = ControlText(["<s>"])
    assert control.marked(f"a{MARK}b") == "ab"
    assert "<s>" not in control.marked(f"<{MARK}s>")
    assert control.marked({f"k{MARK}": [f"{MARK}v", 1, None, True]}) == {"k": ["v", 1, None, True]}


def test_any_mixture_of_spellings_is_broken(full: bool) -> None:
    rng = random.Random("spellings")
    spellings = ["<s>", "<<s>>", "</s>", "<|a|>", "<|a|>b", "a|", "[x]"]
    control = ControlText(spellings)
    for _ in range(5000 if full else 500):
        text = "".join(rng.choice([*spellings, "<", ">", "|", "a", "s", "[", " "]) for _ in range(12))
        marked = control.marked(text)
        assert unmarked(marked) == text
        assert not any(spelling in piece for piece in marked.split(MARK) for spelling in spellings)


@pytest.mark.parametrize("role", ["im_start", "im_end", "", None, 3, "end"])
def test_a_role_cannot_be_the_middle_of_a_control_token(role: Any, tmp_path: Path) -> None:
    config = {"chat_template": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"}
    folder = write_folder(tmp_path, byte_level(CHATML), tokenizer_config=config)
    processor = TextProcessor.from_dir(folder)
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.role"):
        processor.prepare_chat(ChatRequest(messages=[{"role": role, "content": "x"}]))
    prepared = processor.prepare_chat(ChatRequest(messages=[{"role": "critic", "content": "x"}]))
    assert prepared.prompt_text == "<|critic|>x"


def test_raw_prompts_spell_tokens_as_they_always_did(family: str, processor: TextProcessor) -> None:
    for spelling in specials_of(family):
        ids = processor.prepare(f"a{spelling}b", add_special_tokens=False)
        assert special_ids(processor, ids)
