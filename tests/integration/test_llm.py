"""`LLM` as a library user meets it: the demo model in this process."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

import serving.llm
from serving import LLM, SamplingParams
from serving.errors import ConfigError, InvalidRequest, ModelError
from serving.text.chat import ChatRequest
from serving.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", device="cpu", num_threads=1) as llm:
        yield llm
        stats = llm.stats()
        assert stats.num_free_blocks == stats.num_blocks, "requests left blocks behind"
        assert stats.num_sequences == stats.num_finished + stats.num_aborted


def test_text_and_ids_are_two_ways_to_say_a_prompt(llm: LLM, demo_model_dir: Path) -> None:
    ids = Tokenizer.from_dir(demo_model_dir).encode("Once upon a time")
    by_text, by_ids = llm.generate(["Once upon a time", ids], GREEDY)
    assert by_text.token_ids == by_ids.token_ids and by_text.prompt_token_ids == ids
    assert by_text.text == llm.generate("Once upon a time", GREEDY)[0].text
    assert llm.generate(ids, GREEDY)[0].text == by_text.text
    assert len(by_text.logprobs) == len(by_text.token_ids)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    short, long = llm.generate(["The", "The"], [SamplingParams(max_new_tokens=1, seed=1), GREEDY])
    assert len(short.token_ids) == 1 and len(long.token_ids) > 1
    with pytest.raises(InvalidRequest, match="2 prompts"):
        llm.generate(["a", "b"], [GREEDY])


def test_a_stop_string_ends_the_text_behind_it(llm: LLM) -> None:
    whole = llm.generate("Once upon a time", GREEDY)[0].text
    stop = whole[10:14]
    output = llm.generate(
        "Once upon a time", SamplingParams(temperature=0.0, max_new_tokens=24, stop=(stop,))
    )[0]
    assert output.finish_reason == "stop_sequence"
    assert output.text == whole[: whole.index(stop) + len(stop)]
    assert len(output.token_ids) == len(output.logprobs) < 24


def test_stream_gives_the_same_text_in_pieces_and_can_be_left(llm: LLM) -> None:
    pieces = list(llm.stream("Once upon a time", GREEDY))
    assert "".join(pieces) == llm.generate("Once upon a time", GREEDY)[0].text and len(pieces) > 3
    stream = llm.stream("Once upon a time", SamplingParams(max_new_tokens=500, seed=3))
    next(stream)
    stream.close()
    assert llm.stats().num_running == 0


def test_chat_renders_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    output = llm.chat(messages, SamplingParams(temperature=0.0, max_new_tokens=60))
    rendered = llm.text.prepare_chat(ChatRequest(messages=messages)).prompt_text
    assert output.prompt_token_ids == llm.text.prepare(rendered, add_special_tokens=False)
    assert output.text


def test_what_a_chat_spells_never_becomes_a_special_token(llm: LLM) -> None:
    special = llm.text.vocabulary.special_text
    plain = llm.chat([{"role": "user", "content": "a"}], GREEDY).prompt_token_ids
    hostile = llm.chat([{"role": "user", "content": "".join(special.values())}], GREEDY).prompt_token_ids
    assert [i for i in hostile if i in special] == [i for i in plain if i in special]


def test_a_chat_template_of_ones_own() -> None:
    with LLM("demo", device="cpu", chat_template="{{ messages[0].content }}:") as llm:
        output = llm.chat([{"role": "user", "content": "Once upon"}], GREEDY)
        assert output.prompt_token_ids == llm.text.prepare("Once upon:", add_special_tokens=False)


def test_top_tokens_and_prompt_logprobs(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=4, top_n_tokens=3, prompt_logprobs=True)
    output = llm.generate("Once upon a time", params)[0]
    for token_id, logprob, top in zip(output.token_ids, output.logprobs, output.top_tokens, strict=True):
        assert len(top) >= 3 and (top[0].id, top[0].logprob) == (token_id, pytest.approx(logprob, abs=1e-5))
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_what_can_never_run_is_refused_before_anything_is_generated(llm: LLM) -> None:
    before = llm.stats().num_generated_tokens
    with pytest.raises(InvalidRequest, match="at most"):
        llm.generate(["fine", [1] * 5000], GREEDY)
    with pytest.raises(InvalidRequest, match="temperature"):
        llm.generate("fine", SamplingParams(temperature=float("inf")))
    with pytest.raises(InvalidRequest):
        llm.generate([[10**6]], GREEDY)
    assert llm.stats().num_generated_tokens == before
    assert llm.stats().num_running == 0


def test_a_long_batch_shows_a_progress_bar_and_a_short_one_does_not(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    progress = serving.llm.Progress

    def on_console(*columns: object, **options: object) -> object:
        return progress(*columns, console=Console(file=shown, force_terminal=True, width=100), **options)

    monkeypatch.setattr(serving.llm, "Progress", on_console)
    llm.generate(["The"] * 3, GREEDY)
    assert shown.getvalue() == ""
    llm.generate(["The"] * 9, GREEDY)
    assert "9/9" in shown.getvalue() and "tok/s" in shown.getvalue()
    shown.truncate(0)
    llm.generate(["The"] * 9, GREEDY, progress=False)
    assert "9/9" not in shown.getvalue()


def test_start_errors_name_the_value_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        LLM(tmp_path)
    with pytest.raises(ConfigError, match=r"4096|context"):
        LLM("demo", device="cpu", max_total_tokens=10**6)
    with pytest.raises(ConfigError, match="3"):
        LLM("demo", device="cpu", num_ranks=3)


def test_importing_the_package_does_not_import_torch_or_transformers() -> None:
    program = "import sys, serving; serving.SamplingParams; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_generating_never_imports_transformers() -> None:
    program = (
        "import sys\nfrom serving import LLM, SamplingParams\n"
        "LLM('demo', device='cpu', num_threads=1).generate('The', SamplingParams(max_new_tokens=2, seed=1))\n"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
