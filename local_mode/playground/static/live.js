// Occupancy of the chosen endpoint's containers, from their metrics.

import { Chart } from "./chart.js";
import { byId, element, repeatedly } from "./dom.js";
import { metrics } from "./emulator.js";

const IDLE_MS = 1000;
const BUSY_MS = 250;
const whole = (value) => Math.round(value).toLocaleString("en");
const share = (value) => `${value < 0.1 ? Number((100 * value).toPrecision(2)) : Math.round(100 * value)} %`;

/** `target()` is whose numbers are shown, `busy()` whether to look more often. */
export function live({ target, busy }) {
  const kv = new Chart("KV cache", { shown: share, ceiling: 0.001 });
  const batch = new Chart("Running", { shown: whole, ceiling: 4 });
  const waiting = new Chart("Waiting", { shown: whole, ceiling: 4 });
  const speed = new Chart("Tokens/s", { shown: whole, ceiling: 10 });
  const charts = [kv, batch, waiting, speed];
  byId("charts").append(...charts.map((chart) => chart.node));
  let shown = null;
  let before = null;

  const look = async () => {
    const chosen = target();
    if (chosen?.id !== shown?.id) {
      charts.forEach((chart) => chart.clear());
      byId("counters").replaceChildren();
      before = null;
    }
    shown = chosen;
    if (!chosen) return note("");
    let now;
    try { now = await metrics(chosen); } catch { return note("no answer from the emulator"); }
    if (target()?.id !== chosen.id) return;
    if (!now.answered) return note(now.containers ? "its containers show no metrics" : "no container serves");
    note(now.containers > 1 ? `sum of ${now.answered} containers` : "");
    kv.add(now.kv_use, now.kv_tokens_max === null ? "" : `${whole(now.kv_tokens)} / ${whole(now.kv_tokens_max)} tokens`);
    batch.add(now.running, "sequences in the batch");
    waiting.add(now.waiting, "in the queue");
    speed.add(rate(before, now), "generated");
    counters(now);
    before = now;
  };
  return repeatedly(look, () => busy() ? BUSY_MS : IDLE_MS);
}

/** null where it is not known; a container that was replaced counts from 0 again. */
function rate(before, now) {
  if (!before || before.generated_tokens === null || now.generated_tokens === null) return null;
  return Math.max(0, now.generated_tokens - before.generated_tokens) / (now.at_s - before.at_s);
}

function note(text) {
  byId("live-note").textContent = text;
}

function counters(now) {
  const rows = {
    "Prompt tokens": now.prompt_tokens, "of them cached": now.cached_tokens,
    "Generated tokens": now.generated_tokens, Preemptions: now.preemptions,
  };
  byId("counters").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => [
    element("dt", {}, name), element("dd", {}, value === null ? "–" : whole(value)),
  ]));
}
