"""The chat format of the demo model: its special tokens, its Jinja template, and the same rendering in Python.

The corpus renders with `render`, servers with `CHAT_TEMPLATE`; a test holds the two equal.
"""

from collections.abc import Sequence

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|pad|>"
SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_TURN = "<|end_of_turn|>"

# The order is the order of their ids, from 0.
SPECIAL_TOKENS = (BEGIN_OF_TEXT, END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN)

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('unknown role ' + message['role'] + ': use system, user or assistant') }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end_of_turn|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)


def render(turns: Sequence[tuple[str, str]], *, add_generation_prompt: bool = False) -> str:
    """Text of (role, content) turns, starting with the begin-of-text token."""
    body = "".join(f"<|{role}|>\n{content.strip()}{END_OF_TURN}\n" for role, content in turns)
    return BEGIN_OF_TEXT + body + (f"{ASSISTANT}\n" if add_generation_prompt else "")
