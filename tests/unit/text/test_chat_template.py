"""Templates render as transformers renders them, wherever they are kept, and stay inside the sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from serving.errors import ConfigError, InvalidRequest, ModelError, TemplateError
from serving.text.chat_template import RESERVED_VARIABLES, ChatTemplate
from tests.unit.text.template_shapes import CHATML, LLAMA_2
from tests.unit.text.vocabularies import byte_level

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA_3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
    {%- if not ns.multi_step %}{%- break %}{%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if loop.index0 > ns.last %}{{- '<late>' }}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

DEMO = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' + message['role']) }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] }}{% endgeneration %}"
    "{%- else %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end_of_turn|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)

TEMPLATES = {"chatml": CHATML, "llama_3": LLAMA_3, "llama_2": LLAMA_2, "qwen": QWEN, "demo": DEMO}

USER = {"role": "user", "content": "  How many <boats> & 'ships' in 海辺の町?\n"}
ASSISTANT = {"role": "assistant", "content": "<think>hm</think>\n\nTwo."}
CHATS = {
    "question": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [
        {"role": "system", "content": "Be brief.\n"},
        USER,
        ASSISTANT,
        {"role": "user", "content": "Sure? 👍🏽"},
    ],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "count",
            "description": "Zählt <Boote> & \"Schiffe\" 'hier'",
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0.5}},
                "required": [],
            },
        },
    }
]


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), **TOKENS)


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("prompt", [True, False], ids=["prompt", "no prompt"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=list(CHATS))
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=list(TEMPLATES))
def test_renders_as_transformers_does(
    reference: PreTrainedTokenizerFast,
    source: str,
    chat: list[dict[str, object]],
    prompt: bool,
    tools: list[dict[str, object]] | None,
) -> None:
    expected = reference.apply_chat_template(
        chat, chat_template=source, tokenize=False, add_generation_prompt=prompt, tools=tools
    )
    rendered = ChatTemplate(source, TOKENS).render(chat, add_generation_prompt=prompt, tools=tools)
    assert rendered == expected
    assert "海辺の町" in rendered


def test_further_variables_reach_the_template(reference: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(QWEN, TOKENS)
    expected = reference.apply_chat_template(
        [USER], chat_template=QWEN, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert (
        template.render([USER], variables={"enable_thinking": False}) == expected != template.render([USER])
    )


TO_JSON = ["", "(indent=2)", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))"]


@pytest.mark.parametrize("arguments", TO_JSON)
def test_tojson_is_plain_json(reference: PreTrainedTokenizerFast, arguments: str) -> None:
    source = "{{ x | tojson" + arguments + " }}"
    value = {"b": "<ü> & '\"\n", "a": [1, 2.5, None, True]}
    expected = reference.apply_chat_template([USER], chat_template=source, tokenize=False, x=value)
    rendered = ChatTemplate(source, {}).render([USER], variables={"x": value})
    assert rendered == expected
    assert json.loads(rendered) == value


def test_strftime_now_is_the_local_time() -> None:
    before = datetime.now().replace(microsecond=0)
    rendered = ChatTemplate("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}", {}).render([])
    assert before <= datetime.strptime(rendered, "%Y-%m-%d %H:%M:%S") <= datetime.now()


# ------------------------------------------------------------------ where templates are kept


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
IN_CONFIG = {"tokenizer_config.json": {"chat_template": "config"}}
IN_JSON = {"chat_template.json": {"chat_template": "json"}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (IN_CONFIG, "config"),
        (IN_CONFIG | IN_JSON, "json"),
        (IN_JSON | {"chat_template.jinja": "jinja"}, "jinja"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "default"),
        (IN_CONFIG | {"additional_chat_templates/default.jinja": "folder"}, "folder"),
        (IN_JSON | {"chat_template.jinja": "jinja", "additional_chat_templates/rag.jinja": "rag"}, "jinja"),
        (
            IN_CONFIG | {"additional_chat_templates/default.jinja": "no", "chat_template.jinja": "jinja"},
            "jinja",
        ),
        ({"tokenizer_config.json": {"chat_template": None}}, None),
    ],
)
def test_where_a_folder_keeps_its_template(
    tmp_path: Path, files: dict[str, object], expected: str | None
) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    template = ChatTemplate.from_dir(tmp_path, TOKENS)
    assert (None if template is None else template.render([])) == expected


def test_the_template_for_tools_is_used_when_tools_are_offered(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED}))
    template = ChatTemplate.from_dir(tmp_path, TOKENS)
    assert template is not None and template.shows_tools()
    assert template.render([], tools=TOOLS) == "tools"
    assert template.render([]) == "default"


def test_without_a_default_a_plain_chat_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED[:1]}))
    template = ChatTemplate.from_dir(tmp_path, TOKENS)
    assert template is not None and template.render([], tools=TOOLS) == "tools"
    with pytest.raises(TemplateError, match="named tool_use"):
        template.render([])


def test_the_users_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("jinja")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for override, expected in ((str(mine), "mine"), ("{{ 'inline' }}", "inline")):
        template = ChatTemplate.from_dir(tmp_path, TOKENS, override=override)
        assert template is not None and template.render([]) == expected
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate.from_dir(tmp_path, TOKENS, override=str(tmp_path / "missing.jinja"))


def test_a_damaged_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ModelError, match=r"chat_template\.json"):
        ChatTemplate.from_dir(tmp_path, TOKENS)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja"):
        ChatTemplate.from_dir(tmp_path, TOKENS)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Template error: "),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ unknown() }}", "'unknown' is undefined"),
        ("{{ missing | tojson }}", "not JSON serializable"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_fails_is_a_template_error(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        ChatTemplate(source, TOKENS).render([USER])
    assert caught.value.error_type == "template_error"
    assert caught.value.message.startswith("Template error: ")


@pytest.mark.parametrize("name", [*sorted(RESERVED_VARIABLES), "bos_token", "_private"])
def test_reserved_variables_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        ChatTemplate("{{ bos_token }}", TOKENS).render([USER], variables={name: "x"})
    assert caught.value.field == name


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ namespace.__init__.__globals__['os'].system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ raise_exception.__globals__['json'].codecs.open('CANARY', 'w') }}",
    "{{ strftime_now.__globals__['Path']('CANARY').touch() }}",
    "{{ dict.__globals__['Path']('CANARY').touch() }}",
    "{{ (messages|attr('__class__')).__base__ }}",
    "{{ ('{0.__class__.__init__.__globals__}'|attr('format'))(raise_exception) }}",
    "{{ '{0.__globals__}'.format(raise_exception) }}",
    "{{ '{a.__globals__}'.format_map({'a': raise_exception}) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = dict %}{{ ns.x }}",
    "{{ namespace(__class__=dict) }}",
    "{{ namespace({'__init__': dict}) }}",
    "{{ (loop|attr('_')) }}{{ joiner.__init__ }}",
    "{{ [].__class__.__base__.__subclasses__()[0]() }}",
    "{% for f in [raise_exception] %}{{ f.func_globals.x }}{{ f.__code__.co_code }}{% endfor %}",
    "{{ messages|map(attribute='__class__.__mro__')|list|tojson }}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_an_attack_on_the_sandbox_gets_nothing(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        rendered = ChatTemplate(source, {}).render([USER])
    except TemplateError:
        rendered = ""
    assert "class" not in rendered and "globals" not in rendered and "Path" not in rendered
    assert list(tmp_path.iterdir()) == []
