"""Which request fields each API knows without honouring them, and why. Data only: the doors of the APIs refuse by these
tables, and the parameter matrix in the documentation is made from them and the schema types.

A field of a schema that is in none of these tables is honoured.
"""

from __future__ import annotations

_TEXT_ONLY = "the models served here read and write text only"
_ONE_FORMAT = "it belongs to another server; see the documentation for what is offered instead"
_NO_STATE = "this server keeps no state between requests"

_REFUSED_ON_V1 = {
    "suffix": "models are not asked to fill in a middle; put everything into the prompt",
    "prompt_embeds": "tensors are not accepted over HTTP",
    "image_embeds": "tensors are not accepted over HTTP",
    "prompt_logprobs": "use `echo` with `logprobs` on /v1/completions",
    "use_beam_search": "there is no beam search",
    "length_penalty": "there is no beam search",
    "early_stopping": "there is no beam search",
    "bad_words": "use `logit_bias`",
    "allowed_token_ids": "use `logit_bias` or a grammar",
    "logits_processors": "code from requests is never run",
    "include_stop_str_in_output": "stop strings are never part of the text on /v1; the native routes keep them",
    "skip_special_tokens": "special tokens are never part of the text",
    "spaces_between_special_tokens": "special tokens are never part of the text",
    "add_special_tokens": "the model's tokenizer and chat template decide",
    "truncate_prompt_tokens": "prompts are never cut on /v1; the native routes have `truncate`",
    "typical_p": "only the native routes have it",
    "watermark": "only the native routes have it",
    "structured_outputs": "use `response_format` or a `guided_` field",
    "guided_decoding_backend": "there is one grammar engine",
    "guided_whitespace_pattern": "the grammar engine decides about white space",
    "priority": "requests are served in their order of arrival",
    "cache_salt": "prefix caching is not divided by request",
    "return_tokens_as_token_ids": _ONE_FORMAT,
    "return_token_ids": _ONE_FORMAT,
    "kv_transfer_params": _ONE_FORMAT,
    "request_id": "send the header `x-request-id`",
}

_CHAT_ALONE = (
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "top_k",
    "min_p",
    "min_tokens",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "chat_template_kwargs",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "tool_prompt",
)

REFUSED: dict[str, dict[str, str]] = {
    "chat": {
        **_REFUSED_ON_V1,
        "audio": _TEXT_ONLY,
        "prediction": "predicted outputs would change nothing here; leave it out",
        "web_search_options": "this server does not search the web",
        "functions": "deprecated by OpenAI; use `tools`",
        "function_call": "deprecated by OpenAI; use `tool_choice`",
        "verbosity": "no model served here knows it; say it in a message",
        "moderation": "this server does not moderate",
        "mm_processor_kwargs": _TEXT_ONLY,
        "chat_template": "templates from requests are never run; start the server with the template",
        "include_reasoning": "reasoning is always returned in `reasoning_content`",
        "echo": "only /v1/completions has it",
        "best_of": "use `n`",
        "prompt": "send `messages`, or use /v1/completions",
        "input": "send `messages`",
        "previous_response_id": _NO_STATE,
    },
    "completions": {
        **_REFUSED_ON_V1,
        "messages": "send `prompt`, or use /v1/chat/completions",
        "input": "send `prompt`",
        "tools": "only /v1/chat/completions has it",
        "tool_choice": "only /v1/chat/completions has it",
        "top_logprobs": "`logprobs` is the number of likeliest tokens on this route",
        "max_completion_tokens": "this route has `max_tokens`",
    },
    "responses": {
        **_REFUSED_ON_V1,
        "bad_words": "/v1/chat/completions has `logit_bias`",
        "allowed_token_ids": "/v1/chat/completions has `logit_bias`",
        "structured_outputs": "use `text.format`",
        "chat_template": "templates from requests are never run; start the server with the template",
        "previous_response_id": _NO_STATE + "; send the earlier items in `input`",
        "conversation": _NO_STATE + "; send the earlier items in `input`",
        "prompt": _NO_STATE + ", so it has no stored prompts; send `instructions` and `input`",
        "context_management": _NO_STATE,
        "max_tool_calls": "it limits tools that the server runs, and this server runs none",
        "moderation": "this server does not moderate",
        "image": _TEXT_ONLY,
        "access_programs": "there are no access programs",
        "messages": "send `input`, or use /v1/chat/completions",
        "max_tokens": "this route has `max_output_tokens`",
        "max_completion_tokens": "this route has `max_output_tokens`",
        "response_format": "this route has `text.format`",
        "reasoning_effort": "this route has `reasoning.effort`",
        "verbosity": "no model served here knows it; say it in a message",
        "logprobs": "this route has `include` and `top_logprobs`",
        "functions": "deprecated by OpenAI; use `tools`",
        "function_call": "deprecated by OpenAI; use `tool_choice`",
        **dict.fromkeys(_CHAT_ALONE, "OpenAI's /v1/responses does not have it; use /v1/chat/completions"),
    },
}
"""API -> field -> why a request that sets it is refused."""

_WITHOUT_EFFECT_ON_V1 = {
    "user": "it names the end user",
    "metadata": "nothing is stored",
    "service_tier": "there is one tier",
    "store": "only `false` is accepted: nothing is stored",
}

WITHOUT_EFFECT: dict[str, dict[str, str]] = {
    "chat": {
        **_WITHOUT_EFFECT_ON_V1,
        "modalities": 'only `["text"]` is accepted: ' + _TEXT_ONLY,
        "safety_identifier": "it names the end user",
        "prompt_cache_key": "equal prompt beginnings are found without it",
        "prompt_cache_retention": "the prefix cache decides",
        "prompt_cache_options": "the prefix cache decides",
    },
    "completions": {
        **_WITHOUT_EFFECT_ON_V1,
        "best_of": "only the value of `n` is accepted: use the native routes to have the best of several",
    },
    "responses": {
        **_WITHOUT_EFFECT_ON_V1,
        "metadata": "it is returned with the answer; nothing is stored",
        "background": "only `false` is accepted: " + _NO_STATE,
        "truncation": "only `disabled` is accepted: input is never cut",
        "safety_identifier": "it names the end user",
        "prompt_cache_key": "equal prompt beginnings are found without it",
        "prompt_cache_retention": "the prefix cache decides",
        "prompt_cache_options": "the prefix cache decides",
    },
}
"""API -> field -> why it is accepted although it changes no token."""
