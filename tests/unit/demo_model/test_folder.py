"""The model folder agrees with itself: sizes, special ids, tokenizer and chat template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from local_mode.demo_model import demo_model_path
from local_mode.demo_model.chat_format import (
    BEGIN_OF_TEXT,
    CHAT_TEMPLATE,
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    SPECIAL_TOKENS,
    render,
)

MIB = 1024 * 1024
FOLDER = demo_model_path()
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def read(name: str) -> dict[str, Any]:
    value = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def template(source: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(source)


def test_size_in_the_repository() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 12 * MIB


def test_import_needs_no_torch() -> None:
    check = "import sys, local_mode.demo_model as d; d.demo_model_path(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_config_and_tokenizer_agree() -> None:
    config = read("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == TOKENIZER.get_vocab_size()
    assert config["bos_token_id"] == TOKENIZER.token_to_id(BEGIN_OF_TEXT)
    assert config["pad_token_id"] == TOKENIZER.token_to_id(PAD)
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_both_stop_tokens_are_in_both_configs() -> None:
    stops = {TOKENIZER.token_to_id(END_OF_TURN), TOKENIZER.token_to_id(END_OF_TEXT)}
    for name in ("config.json", "generation_config.json"):
        assert set(read(name)["eos_token_id"]) == stops, name


def test_tokenizer_config_names_the_same_tokens() -> None:
    config, names = read("tokenizer_config.json"), read("special_tokens_map.json")
    for key, token in (("bos_token", BEGIN_OF_TEXT), ("eos_token", END_OF_TEXT), ("pad_token", PAD)):
        assert config[key] == names[key] == token
    added = {entry["content"]: int(index) for index, entry in config["added_tokens_decoder"].items()}
    assert added == {token: TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS}


def test_weights_have_the_shapes_of_the_config() -> None:
    config = read("config.json")
    with safe_open(FOLDER / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in names}
        types = {weights.get_slice(name).get_dtype() for name in names}
    hidden, head = config["hidden_size"], config["head_dim"]
    assert types == {"BF16"}
    assert "lm_head.weight" not in names and config["tie_word_embeddings"] is True
    assert len(names) == 9 * config["num_hidden_layers"] + 2
    assert shapes["model.embed_tokens.weight"] == (config["vocab_size"], hidden)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (config["num_key_value_heads"] * head, hidden)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (hidden, config["intermediate_size"])
    parameters = sum(
        int(rows) * int(columns or 1) for rows, columns in ((*s, 0)[:2] for s in shapes.values())
    )
    assert 3_000_000 <= parameters <= 8_000_000


def test_encoding_puts_the_begin_of_text_token_first() -> None:
    ids = TOKENIZER.encode("Once upon a time").ids
    assert ids[0] == TOKENIZER.token_to_id(BEGIN_OF_TEXT)
    assert TOKENIZER.decode(ids) == "Once upon a time"


@pytest.mark.parametrize(
    "text",
    [
        "Zoë likes crêpes at the Café Lune.",
        "🦊🐿️ 👨‍👩‍👧‍👦 🇫🇷",
        "こんにちは 你好 안녕하세요 नमस्ते مرحبا שלום",
        " two  spaces\t\ttabs\r\n\n\nlines ",
        "e\u0301 is not \u00e9",
        "\x00\x01\x7f\ufeff\ufffd\U0010ffff",
        "12345 6.7e-8",
        "",
    ],
)
def test_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.text(max_size=80).filter(lambda text: "<|" not in text))
def test_round_trip_of_any_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.binary(max_size=80))
def test_round_trip_of_decoded_bytes(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_some_characters_span_tokens() -> None:
    """Incremental detokenization has real work: one visible character, several tokens."""
    for text in ("🦊", "नमस्ते", "אב"):
        assert len(TOKENIZER.encode(text, add_special_tokens=False).ids) > 1


CHATS = (
    [("user", "Hello!")],
    [("system", "You love emoji. "), ("user", "\n Who is Zoë?")],
    [("user", "Hi"), ("assistant", "Hi there! 👋"), ("user", "2 + 2 < 5 & 'so' on?")],
)


@pytest.mark.parametrize("turns", CHATS, ids=["one", "system", "three"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_the_template_renders_the_trained_format(
    turns: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = template(read("tokenizer_config.json")["chat_template"]).render(
        messages=messages, bos_token=BEGIN_OF_TEXT, add_generation_prompt=add_generation_prompt
    )
    assert text == render(turns, add_generation_prompt=add_generation_prompt)


def test_the_stored_template_is_the_one_in_the_code() -> None:
    assert read("tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role tool"):
        template(CHAT_TEMPLATE).render(messages=[{"role": "tool", "content": "x"}], bos_token="")


def test_special_tokens_are_single_ids_in_rendered_text() -> None:
    ids = TOKENIZER.encode(render([("user", "Hi")]), add_special_tokens=False).ids
    assert ids[0] == TOKENIZER.token_to_id(BEGIN_OF_TEXT)
    assert ids.count(TOKENIZER.token_to_id(BEGIN_OF_TEXT)) == 1
    assert TOKENIZER.token_to_id(END_OF_TURN) in ids


def test_the_path_is_a_model_folder() -> None:
    assert isinstance(FOLDER, Path)
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert names <= {path.name for path in FOLDER.iterdir()}
