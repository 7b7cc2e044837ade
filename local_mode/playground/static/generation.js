// One request for text: what is sent for it, and its answer as pieces with the times they came at. Knows no elements.

import { ask, parsed, Refused } from "./emulator.js";
import { events, payloads } from "./streams.js";

/**
 * What Send asks for: {mode, endpoint, component, messages or prompt, parameters} to a path, headers and a body.
 * Parameters that are undefined are left out, as JSON does.
 */
export function request({ mode, endpoint, component, messages, prompt, parameters }) {
  const { max_tokens, temperature, top_p, seed, stop } = parameters;
  const name = encodeURIComponent(endpoint);
  const headers = { "Content-Type": "application/json" };
  if (mode === "chat") {
    const part = component ? `/inference-components/${encodeURIComponent(component)}` : "";
    return {
      path: `/endpoints/${name}${part}/openai/v1/chat/completions`,
      headers: { ...headers, Authorization: "Bearer local" },
      body: {
        model: component ?? endpoint, messages, max_tokens, temperature, top_p, seed, stop,
        stream: true, stream_options: { include_usage: true },
      },
    };
  }
  if (component) headers["X-Amzn-SageMaker-Inference-Component"] = component;
  return {
    path: `/endpoints/${name}/invocations-response-stream`,
    headers,
    body: {
      inputs: prompt,
      parameters: { max_new_tokens: max_tokens, temperature, top_p, seed, stop, details: true },
      stream: true,
    },
  };
}

/**
 * The answer's pieces: {text}, and at last what is told of it in {finish, inputTokens, outputTokens, cachedTokens}.
 * Throws `Refused` for an error document, also one within the stream, and `Error` for a stream that just ends.
 */
export async function* answer(wanted, signal) {
  const { path, headers, body } = request(wanted);
  const response = await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  const isChat = wanted.mode === "chat";
  const read = isChat ? chatPiece : generatePiece;
  let complete = false;
  for await (const data of events(isChat ? response.body : payloads(response.body))) {
    if (data === "[DONE]") return;
    const document = parsed(data);
    if (document === null || document.error) throw Refused.from(response.status, document, data);
    const piece = read(document);
    complete ||= piece.finish !== undefined;
    yield piece;
  }
  if (isChat || !complete) throw new Error("The connection was closed before the answer was complete.");
}

function chatPiece({ choices: [choice], usage }) {
  const piece = { text: choice?.delta?.content ?? "" };
  if (choice?.finish_reason) piece.finish = choice.finish_reason;
  if (usage) {
    piece.inputTokens = usage.prompt_tokens;
    piece.outputTokens = usage.completion_tokens;
    piece.cachedTokens = usage.prompt_tokens_details?.cached_tokens;
  }
  return piece;
}

function generatePiece({ token, details }) {
  const piece = { text: token && !token.special ? token.text : "" };
  if (details) {
    piece.finish = details.finish_reason;
    piece.inputTokens = details.input_length;
    piece.outputTokens = details.generated_tokens;
  }
  return piece;
}

/** Times of one answer, in ms of `performance.now()`, taken where a reader is: in the page. */
export class Stopwatch {
  #started = performance.now();
  #first = null;
  #last = null;
  pieces = 0;

  piece() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.pieces += 1;
  }

  get firstTokenMs() { return this.#first === null ? null : this.#first - this.#started; }

  get totalMs() { return performance.now() - this.#started; }

  /** Of all tokens after the first, which waited for the prompt as well. */
  tokensPerSecond(tokens = this.pieces) {
    const seconds = (this.#last - this.#first) / 1000;
    return tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }
}
