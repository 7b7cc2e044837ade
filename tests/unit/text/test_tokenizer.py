"""Token bytes agree with the `tokenizers` library; model folders are read strictly, their code never runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from serving.errors import InvalidRequest, ModelError
from serving.text.detokenizer import IncrementalDetokenizer
from serving.text.token_bytes import TokenBytes, byte_alphabet
from serving.text.tokenizer import LONG_TEXT_CHARS, Tokenizer
from tests.unit.text.vocabularies import TEXTS, byte_level, metaspace, sentencepiece, write_folder

Pair = tuple[str, Tokenizer, tokenizers.Tokenizer]
MAKERS = {"byte_level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}


@pytest.fixture(scope="module", params=list(MAKERS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    backend = MAKERS[request.param]()
    folder = write_folder(tmp_path_factory.mktemp("model"), backend)
    return request.param, Tokenizer.from_dir(folder), backend


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(write_folder(tmp_path_factory.mktemp("model"), byte_level()))


def texts_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer.vocabulary)
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_and_texts_equal_the_library(pair: Pair, text: str) -> None:
    kind, tokenizer, backend = pair
    ids = tokenizer.encode(text)
    assert ids == backend.encode(text).ids
    decoded = backend.decode(ids)
    if kind == "byte_level":
        assert texts_of(tokenizer, ids) == decoded == text
    else:
        # Both SentencePiece decoders drop the space that was put in front of the text; we continue one.
        assert texts_of(tokenizer, ids) == " " + decoded


def test_every_token_behind_another_one_equals_the_library(
    pair: Pair,
) -> None:
    _, tokenizer, backend = pair
    letter = backend.token_to_id("a")
    token_bytes = tokenizer.vocabulary.token_bytes
    assert len(token_bytes) == backend.get_vocab_size()
    for token_id in set(range(len(token_bytes))) - tokenizer.vocabulary.special_ids:
        decoded = backend.decode([letter, token_id], skip_special_tokens=False)
        assert decoded == "a" + token_bytes[token_id].decode("utf-8", "replace")


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_survives_the_round_trip(byte_tokenizer: Tokenizer, text: str) -> None:
    assert texts_of(byte_tokenizer, byte_tokenizer.encode(text)) == text


def test_byte_fallback_tokens_are_bytes(pair: Pair) -> None:
    kind, tokenizer, backend = pair
    if kind != "sentencepiece":
        assert not any(token.startswith("<0x") for token in backend.get_vocab())
        return
    assert [tokenizer.vocabulary.token_bytes[backend.token_to_id(f"<0x{n:02X}>")] for n in range(256)] == [
        bytes((n,)) for n in range(256)
    ]
    assert texts_of(tokenizer, tokenizer.encode("👍🏽")) == " 👍🏽"


def test_the_byte_alphabet_is_the_librarys() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))


def test_long_texts_take_the_batch_path_to_the_same_ids(byte_tokenizer: Tokenizer) -> None:
    text = " ".join(TEXTS) * (1 + LONG_TEXT_CHARS // len(" ".join(TEXTS)))
    assert len(text) >= LONG_TEXT_CHARS
    one_by_one = byte_tokenizer.encode_batch([text, "short"])
    assert one_by_one == [byte_tokenizer.encode(text), byte_tokenizer.encode("short")]
    assert one_by_one[0] == byte_tokenizer._backend.encode(text).ids
    assert byte_tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("repeat", [1, LONG_TEXT_CHARS])
@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff"])
def test_lone_surrogates_are_refused(byte_tokenizer: Tokenizer, surrogate: str, repeat: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"U\+{ord(surrogate):04X} at character {repeat}") as caught:
        byte_tokenizer.encode("x" * repeat + surrogate)
    assert caught.value.field == "inputs"


# ------------------------------------------------------------------ special tokens


def test_special_tokens_have_a_spelling_and_no_bytes(byte_tokenizer: Tokenizer) -> None:
    vocabulary = byte_tokenizer.vocabulary
    assert vocabulary.special_text == {0: "<s>", 1: "</s>", 2: "<pad>"}
    assert [vocabulary.token_bytes[token_id] for token_id in range(3)] == [b"", b"", b""]


def test_special_spellings_in_a_text_become_the_tokens(byte_tokenizer: Tokenizer) -> None:
    assert byte_tokenizer.encode("a</s>b") == [*byte_tokenizer.encode("a"), 1, *byte_tokenizer.encode("b")]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"tokenizer_config": {"eos_token": "</s>"}}, {1}),
        ({"tokenizer_config": {"eos_token": {"content": "</s>", "__type": "AddedToken"}}}, {1}),
        ({"special_tokens_map": {"eos_token": {"content": "</s>"}}}, {1}),
        ({"tokenizer_config": {"eos_token": "</s>"}, "generation_config": {"eos_token_id": [2, 5]}}, {2, 5}),
        ({"tokenizer_config": {"eos_token": "</s>"}, "generation_config": {"eos_token_id": 2}}, {1, 2}),
        ({"tokenizer_config": {"eos_token": "</s>"}, "config": {"eos_token_id": 2}}, {1, 2}),
        ({"generation_config": {"eos_token_id": 1}, "config": {"eos_token_id": 2}}, {1}),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": [2]}}, {2}),
        ({"tokenizer_config": {"eos_token": "<not there>"}}, set()),
    ],
)
def test_end_of_text_ids(tmp_path: Path, files: dict[str, object], expected: set[int]) -> None:
    tokenizer = Tokenizer.from_dir(write_folder(tmp_path, byte_level(), **files))
    assert tokenizer.vocabulary.eos_token_ids == expected


@pytest.mark.parametrize("value", ["2", True, [1, None], -1, {"id": 1}, 1.0])
def test_a_wrong_end_of_text_id_is_a_model_error(tmp_path: Path, value: object) -> None:
    with pytest.raises(ModelError, match=r"eos_token_id.*generation_config"):
        Tokenizer.from_dir(write_folder(tmp_path, byte_level(), generation_config={"eos_token_id": value}))


def test_which_tokens_are_hidden(tmp_path: Path) -> None:
    backend = byte_level()
    backend.add_tokens(["<tool_call>", "<|end|>", "<|image|>"])
    visible, end, image = (backend.token_to_id(text) for text in ("<tool_call>", "<|end|>", "<|image|>"))
    config = {"pad_token": "!", "additional_special_tokens": ["<|image|>"]}
    tokenizer = Tokenizer.from_dir(
        write_folder(tmp_path, backend, tokenizer_config=config, generation_config={"eos_token_id": [end]})
    )
    vocabulary = tokenizer.vocabulary
    assert vocabulary.special_ids == {0, 1, 2, end, image}
    assert vocabulary.token_bytes[visible] == b"<tool_call>"
    assert vocabulary.token_bytes[backend.token_to_id("!")] == b"!"


@pytest.mark.parametrize("bos", [True, False, None])
@pytest.mark.parametrize("template", ["<s> $A", "$A </s>", None])
def test_the_post_processor_decides_on_bos_and_eos_as_in_transformers(
    tmp_path: Path, bos: bool | None, template: str | None
) -> None:
    backend = byte_level()
    if template is not None:
        special = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos, "add_eos_token": True}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    folder = write_folder(tmp_path, backend, tokenizer_config=config, config={"model_type": "llama"})
    ids = Tokenizer.from_dir(folder).encode("in the town")
    assert ids == AutoTokenizer.from_pretrained(str(folder))("in the town").input_ids
    assert (ids[0] == 0, ids[-1] == 1) == (template == "<s> $A", template == "$A </s>")


def test_without_special_tokens_only_the_text_is_left(tmp_path: Path) -> None:
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = Tokenizer.from_dir(write_folder(tmp_path, backend))
    assert tokenizer.encode("town") == [0, *tokenizer.encode("town", add_special_tokens=False)]


def test_truncation_and_padding_saved_with_the_tokenizer_are_dropped(tmp_path: Path) -> None:
    backend = byte_level()
    plain = backend.encode("once upon a time").ids
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    tokenizer = Tokenizer.from_dir(write_folder(tmp_path, backend))
    assert tokenizer.encode("once upon a time") == plain


# ------------------------------------------------------------------ refusals


def test_a_missing_tokenizer_names_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read .*save_pretrained"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"decoder": 3}', b'{"model": {"type": "Zorg"}}']
)
def test_a_damaged_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "generation_config", "config"])
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b"[" * 200_000])
def test_a_damaged_configuration_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_folder(tmp_path, byte_level())
    (tmp_path / f"{name}.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}\.json"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (None, "no decoder"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.CTC(), "CTC"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.WordPiece()]), "WordPiece"),
        (decoders.Replace(tokenizers.Regex("a+"), "a"), "more than a string"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]), "cuts the end"),
        # Looks derivable, but works across tokens: found by comparing with the library.
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "x")]), "decoder is not supported"),
    ],
)
def test_a_decoder_we_cannot_derive_is_refused(tmp_path: Path, decoder: object, reason: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ModelError, match=reason):
        Tokenizer.from_dir(write_folder(tmp_path, backend))


@pytest.mark.parametrize(
    ("decoder", "token", "expected"),
    [
        (decoders.ByteLevel(), "Ġtown", b" town"),
        (decoders.ByteLevel(), "Ã©", "é".encode()),
        (decoders.ByteLevel(), "an added token", b"an added token"),
        (decoders.ByteLevel(), "家", "家".encode()),
        (decoders.Metaspace(), "▁a▁b", b" a b"),
        (decoders.Metaspace(replacement="_"), "_a", b" a"),
        (decoders.ByteFallback(), "<0xE5>", b"\xe5"),
        (decoders.ByteFallback(), "<0xZZ>", b"<0xZZ>"),
        (decoders.Fuse(), "<0xE5>", b"<0xE5>"),
        (decoders.Strip("_", 2, 1), "___a__", b"_a_"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), "▁a", b" a"),
    ],
)
def test_token_bytes(decoder: tokenizers.decoders.Decoder, token: str, expected: bytes) -> None:
    assert TokenBytes(json.loads(decoder.__getstate__()))(token) == expected


def test_a_vocabulary_without_letters_or_tokens(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    backend.decoder = decoders.Fuse()
    with pytest.raises(ModelError, match="cannot be verified"):
        Tokenizer.from_dir(write_folder(tmp_path / "a", backend))
    empty = tokenizers.Tokenizer(models.BPE())
    empty.decoder = decoders.Fuse()
    with pytest.raises(ModelError, match="empty vocabulary"):
        Tokenizer.from_dir(write_folder(tmp_path / "b", empty))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    auto_map = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}}
    folder = write_folder(tmp_path / "model", byte_level(), tokenizer_config=auto_map, config=auto_map)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    Tokenizer.from_dir(folder)
    assert not canary.exists()


def test_the_package_imports_neither_torch_nor_transformers_nor_gevent() -> None:
    code = (
        "import sys, serving.text.processor;"
        "found = {'torch', 'transformers', 'gevent', 'huggingface_hub'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
