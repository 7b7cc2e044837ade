"""Where this server differs on purpose from Text Generation Inference and from OpenAI. Data for `docs/api-parity.md`."""

from __future__ import annotations

Difference = tuple[str, str, str]
"""Subject, what the other does, what this server does and why."""

TGI: tuple[Difference, ...] = (
    (
        "Schema errors (400, 413, 415, 422)",
        "plain text",
        "the same status with JSON `{error, error_type, request_id}`; every error body stays under 1 KB",
    ),
    ("Unknown paths, wrong methods, missing key", "empty body", "the same status with a JSON body"),
    (
        "Errors of streams",
        "always 200, the error is an event",
        "what is found before the first token is a real status; later errors are the last event, with their cause",
    ),
    ("Overload", "429 even for requests that are wrong", "a wrong request is told so first"),
    (
        "Malformed JSON",
        "duplicate fields are 422, `1e400` is read, lone surrogates are replaced",
        "400 naming the position: duplicate keys, NaN, Infinity, numbers out of range, lone surrogates, "
        "a byte order mark, nesting deeper than 64",
    ),
    (
        "Missing Content-Type",
        "415",
        "read as JSON, also `application/octet-stream`: SageMaker clients send both",
    ),
    (
        "Body limit",
        "2,000,000 bytes",
        "32 MiB unless PAYLOAD_LIMIT says otherwise, refused before it is read",
    ),
    (
        "Unknown fields",
        "ignored silently",
        "ignored, named in `x-ignored-parameters`, counted and logged; 422 with UNKNOWN_PARAMETERS=refuse",
    ),
    ("`top_p: 1.0`, `typical_p: 1.0`", "422", "accepted: both mean off"),
    ("`adapter_id` that does not exist", "the base model answers", "404"),
    ("Empty stop strings", "accepted, and end the text at once", "422"),
    ("Stop strings inside of a token", "never found", "found; the text ends directly after them"),
    (
        "`max_new_tokens`",
        "checked and served in chunks of 1024, so that an answer may be longer or shorter than asked",
        "checked and served exactly",
    ),
    ("Grammars beyond 1024 tokens", "start again in the middle of the text", "hold for the whole answer"),
    (
        "Grammar schemas",
        "top-level `properties` needed; `minimum`, recursion and more ignored or refused",
        "any object is a schema; what the grammar engine cannot follow is refused by name",
    ),
    ("`decoder_input_details`", "empty without a server flag", "always filled"),
    (
        "Frequency penalty in mixed batches",
        "shorter prompts are padded with token 0, which is then penalized",
        "no padding: a row depends on its own tokens",
    ),
    (
        "Top tokens",
        "ties at the last place make the list longer",
        "exactly as many as asked",
    ),
    ("Sampling", "depends on device and batch", "one uniform per token from seed and position"),
    ("`x-compute-type`", "ranks and name of the GPU", "ranks and kind of device, such as `1-cpu`"),
    (
        "API key",
        "scheme and key compared without regard to case; GET / and /info, /metrics, /docs and /chat_tokenize are open",
        "the key to the byte, in constant time; only GET /ping, /health and /metrics are open",
    ),
    (
        "CORS",
        "only `content-type` may be sent, so browsers cannot send the key",
        "`authorization` and others too",
    ),
    (
        "/health before the model is loaded",
        "connection refused",
        "503 with the stage of the start",
    ),
    (
        "/info",
        "no type of device or numbers",
        "`model_dtype` and `model_device_type` as earlier versions of TGI had them",
    ),
    (
        "/tokenize",
        "checks the types of `parameters`",
        "`parameters` are not looked into; texts above 1,048,576 characters are 422",
    ),
    ("/vertex, /v2 (KServe)", "in some builds", "not offered: 404"),
    (
        "Images in `inputs`",
        "fetched by vision models from any URL",
        "text: the server opens no connection for a request",
    ),
    (
        "Tools",
        "`arguments` may stand for `parameters`, and any text as `tool_choice` names a function",
        "OpenAI's shapes; `type` may be left out of a named `tool_choice`, as huggingface_hub does",
    ),
    (
        "A chat that ends with the assistant's message",
        "is continued",
        "is answered anew, as OpenAI does; `continue_final_message: true` continues it",
    ),
    (
        "/v1 routes",
        "TGI's own meaning of OpenAI's fields",
        "OpenAI's, see below",
    ),
    (
        "/invocations",
        "a body that matches no shape fails without a reason; `stream` in the body alone decides",
        "the keys decide which API answers, and its errors name the field; `Accept: application/jsonlines` is honoured",
    ),
    (
        "Long answers on /invocations that are not streamed",
        "lost: SageMaker gives up after 60 s",
        "after UNARY_DEADLINE_S (58 s) the text so far with the reason `length` and `deadline=reached` in "
        "X-Amzn-SageMaker-Custom-Attributes, without a tool call that was cut; 424 where a grammar, a format or a forced "
        "call makes a part useless; 429 before the first token",
    ),
    (
        "Sessions on /invocations",
        "none",
        "`requestType` NEW_SESSION or CLOSE in a body of its own, or X-Amzn-SageMaker-Session-Id: NEW_SESSION with an "
        "ordinary request, whose answer names the session in both headers; a session keeps the computed prompt, "
        "not messages",
    ),
    (
        "JSON lines on /invocations, /execution-parameters",
        "415, 404",
        "one answer per line in the same order, errors with `status` next to them, also for blank lines; never streamed",
    ),
)

OPENAI: tuple[Difference, ...] = (
    (
        "Unknown fields",
        "400",
        "400, except where null, and except fields that change no token",
    ),
    (
        "Known fields without an implementation",
        "depends",
        "400 naming the field and the reason; see the matrix",
    ),
    ("Error bodies", "`{error: {message, type, param, code}}`", "the same and `request_id`"),
    (
        "`model`",
        "required",
        "optional; absent, empty, `tgi`, `dummy` (which huggingface_hub sends), the served id and the names in "
        "SERVED_MODEL_NAME mean the served model",
    ),
    (
        "Further fields",
        "refused",
        "`top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `min_tokens`, `stop_token_ids`, `guided_*`, "
        "`chat_template_kwargs`, `documents`, `continue_final_message` have vLLM's meaning",
    ),
    ("`response_format`", "OpenAI's form", "OpenAI's form or TGI's `{type, value}`"),
    ("`strict` of tools", "false by default", "arguments follow the schema wherever a call is forced"),
    (
        "`store`, `metadata`",
        "keep the answer for later",
        "`store: true` is refused; nothing is kept between requests",
    ),
    ("`seed`", "best effort", "the same request gives the same tokens"),
    ("Images, audio, files", "some models", "400: the models served here read and write text"),
    ("Reasoning", "hidden", "`reasoning_content`, as DeepSeek's and vLLM's servers have it"),
    (
        "State of `/v1/responses`",
        "answers are stored unless `store` is false",
        "an absent `store` means false; `previous_response_id`, `conversation`, `prompt` and items of the type "
        "`item_reference` are refused",
    ),
    (
        "Reasoning in `/v1/responses`",
        "hidden, as a summary, or encrypted",
        "items of the type `reasoning` with the whole text in `content`; sent back they reach the model where its "
        "template shows `reasoning_content`, and are dropped elsewhere",
    ),
    (
        "`allowed_tools` in `tool_choice`",
        "the model is shown all tools",
        "the model is shown the allowed ones",
    ),
    ("Rate limits", "headers with counts", "429 with `retry-after`"),
)
