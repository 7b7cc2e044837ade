// The log of the chosen endpoint's containers: follows, filters, pauses, copies.

import { byId, copies, element, repeatedly } from "./dom.js";
import { logs } from "./emulator.js";

const PAUSE_MS = 1000;
const MAX_LINES = 2000;

/** `target()` is whose log is shown. */
export function journal({ target }) {
  const list = byId("log-lines");
  const filter = byId("log-filter");
  const pause = byId("log-pause");
  let shown = null;
  let cursor = null;
  let lines = [];

  const matches = ({ text, stream }) => `${stream} ${text}`.toLowerCase().includes(filter.value.toLowerCase());
  const count = () => {
    const visible = list.childElementCount;
    byId("log-count").textContent = visible === lines.length ? `${visible} lines` : `${visible} of ${lines.length} lines`;
  };
  const add = (fresh) => {
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
    lines.push(...fresh);
    lines.splice(0, lines.length - MAX_LINES);
    list.append(...fresh.filter(matches).map(row));
    while (list.childElementCount > MAX_LINES) list.firstElementChild.remove();
    if (atEnd) list.scrollTop = list.scrollHeight;
    count();
  };
  const look = async () => {
    const chosen = target();
    if (chosen?.endpoint !== shown) {
      [shown, cursor, lines] = [chosen?.endpoint, null, []];
      list.replaceChildren();
      count();
    }
    if (!chosen || pause.checked) return;
    try {
      const read = await logs(chosen, cursor);
      if (target()?.endpoint !== shown) return;
      cursor = read.cursor;
      if (read.lines.length) add(read.lines);
    } catch { /* the endpoint was just deleted, or the emulator has ended, which the header tells */ }
  };

  filter.addEventListener("input", () => {
    list.replaceChildren(...lines.filter(matches).map(row));
    list.scrollTop = list.scrollHeight;
    count();
  });
  copies(byId("log-copy"), () => lines.filter(matches).map(({ text }) => text).join("\n"));
  const soon = repeatedly(look, () => PAUSE_MS);
  pause.addEventListener("change", soon);
  return soon;
}

function row({ stream, text }) {
  const level = /\b(ERROR|CRITICAL|WARNING)\b|Traceback/.exec(text);
  const kind = level === null ? "" : level[0] === "WARNING" ? "warning" : "error";
  return element("div", { class: kind, title: stream }, text);
}
