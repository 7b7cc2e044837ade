// The conversation: what was said, the answer as it grows, its figures, and its error if it has one.

import { byId, element } from "./dom.js";
import { answer, Stopwatch } from "./generation.js";

export class Talk {
  /** What the model is told of earlier turns; an answer that failed is not part of it. */
  messages = [];
  #node = byId("talk");
  #abort = null;

  get busy() { return this.#abort !== null; }

  /** Ends the connection, and with it the generation. */
  stop() { this.#abort?.abort(); }

  clear() {
    this.stop();
    this.messages = [];
    this.#node.replaceChildren();
  }

  /**
   * Shows `prompt` and the answer to `wanted`; returns when that is complete, and whether there is any text. Errors are
   * shown, not thrown.
   */
  async ask(prompt, wanted) {
    const messages = this.messages;
    const text = element("div", { class: "text" });
    const figures = element("p", { class: "figures soft" }, "waiting for the first token");
    const reply = element("article", { class: "answer", "aria-busy": "true", "aria-label": "Answer" }, text, figures);
    this.#node.append(element("article", { class: "prompt", "aria-label": "Prompt" }, prompt), reply);
    this.#toEnd();
    const abort = this.#abort = new AbortController();
    const watch = new Stopwatch();
    const told = {};
    try {
      for await (const { text: piece, ...rest } of answer(wanted, abort.signal)) {
        Object.assign(told, rest);
        if (piece) this.#grow(text, piece, watch);
        figures.textContent = inWords(watch, told);
      }
    } catch (error) {
      if (abort.signal.aborted) told.finish = "stopped";
      else {
        reply.append(problem(error));
        this.#toEnd();
      }
    }
    figures.textContent = inWords(watch, told);
    reply.setAttribute("aria-busy", "false");
    if (text.textContent) {
      messages.push({ role: "user", content: prompt }, { role: "assistant", content: text.textContent });
    }
    this.#abort = null;
    return text.textContent !== "";
  }

  #grow(text, piece, watch) {
    const atEnd = this.#node.scrollHeight - this.#node.scrollTop - this.#node.clientHeight < 40;
    watch.piece();
    text.append(piece);
    if (atEnd) this.#toEnd();
  }

  #toEnd() {
    this.#node.scrollTop = this.#node.scrollHeight;
  }
}

/** Figures of an answer; tokens of one that was stopped are counted by the pieces that came. */
function inWords(watch, { finish, inputTokens, outputTokens, cachedTokens }) {
  const speed = watch.tokensPerSecond(outputTokens);
  return [
    watch.firstTokenMs === null ? null : `first token ${watch.firstTokenMs.toFixed(0)} ms`,
    speed === null ? null : `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`,
    inputTokens === undefined ? null : `${inputTokens} in${cachedTokens === undefined ? "" : ` (${cachedTokens} cached)`}`,
    outputTokens !== undefined ? `${outputTokens} out` : watch.pieces ? `about ${watch.pieces} out` : null,
    finish === undefined ? null : `finish: ${finish}`,
  ].filter((part) => part !== null).join(" · ");
}

function problem(error) {
  const { message, ...members } = error.members ?? {};
  const facts = Object.entries({ status: error.status, ...members })
    .filter(([, value]) => value !== null && value !== undefined && value !== "");
  return element("div", { class: "problem", role: "alert" },
    element("p", {}, message ?? error.message),
    element("dl", {}, ...facts.flatMap(([name, value]) => [
      element("dt", {}, name), element("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)),
    ])));
}
