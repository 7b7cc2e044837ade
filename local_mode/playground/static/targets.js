// The list of endpoints and components, with their states as they change; which one is chosen.

import { byId, element, repeatedly } from "./dom.js";
import { call, createDemo, endpoints } from "./emulator.js";

const PAUSE_MS = 2000;
const CHANGING_MS = 500;
const SERVING = ["InService", "Updating", "SystemUpdating", "RollingBack"];

/**
 * `changed()` is called when the choice, or what is known of it, has changed. `chosen()` of what is returned is
 * {id, label, endpoint, component, obstacle}, or null when there is nothing to choose; `obstacle` says in words why it
 * cannot be asked now, null: it can.
 */
export function targets({ changed }) {
  let chosen = null;
  let seen = "";
  let wish = null; // the endpoint that was asked for last

  const choose = (target) => {
    chosen = target;
    changed();
  };
  const show = (listed) => {
    const rows = listed.flatMap(choices);
    byId("no-endpoints").hidden = listed.length > 0;
    byId("create-demo").classList.toggle("quiet", listed.length > 0);
    const find = (id) => rows.find((row) => row.id === id);
    const next = find(wish) ?? find(chosen?.id) ?? rows.find((row) => row.obstacle === null) ?? rows[0] ?? null;
    if (find(wish)) wish = null;
    const focused = document.activeElement?.closest?.("#targets") ? document.activeElement.id : null;
    byId("targets").replaceChildren(...rows.map((row) => card(row, row.id === next?.id, choose, soon)));
    if (focused) byId(focused)?.focus();
    choose(next);
  };
  const look = async () => {
    try {
      const listed = await endpoints();
      byId("connection").textContent = "";
      // The list is only made again when it says something else, to leave focus and selections alone.
      const now = JSON.stringify(listed);
      if (now !== seen) show(listed);
      seen = now;
    } catch {
      byId("connection").textContent = "The emulator does not answer.";
    }
  };
  const soon = repeatedly(look, () => /"(Creating|Updating|Deleting)"/.test(seen) || wish ? CHANGING_MS : PAUSE_MS);

  byId("create-demo").addEventListener("click", async ({ currentTarget }) => {
    currentTarget.disabled = true;
    try {
      wish = await createDemo();
      problem(null);
    } catch (error) { problem(error); }
    soon();
    currentTarget.disabled = false;
  });
  return { chosen: () => chosen };
}

/** An endpoint, then its components. */
function choices(listed) {
  const { name, status, reason, variants, components } = listed;
  const facts = variants.map((variant) =>
    [variant.name, variant.model, `${variant.instances} of ${variant.wanted} instances`,
      ...(variants.length > 1 ? [`weight ${variant.weight}`] : [])].filter(Boolean).join(" · "));
  const own = {
    id: name, endpoint: name, component: null, label: name, status, reason, facts,
    obstacle: !SERVING.includes(status) ? `is ${status}` : components.length ? "is for its components: choose one" : null,
  };
  return [own, ...components.map((component) => ({
    id: `${name}/${component.name}`, endpoint: name, component: component.name, label: component.name,
    status: component.status, reason: component.reason,
    facts: [component.adapter_of
      ? `adapter of ${component.adapter_of}`
      : [component.model, `${component.copies ?? 0} of ${component.wanted ?? 0} copies`].filter(Boolean).join(" · ")],
    obstacle: ["InService", "Updating"].includes(component.status) ? null : `is ${component.status}`,
  }))];
}

function problem(error) {
  byId("endpoints-problem").hidden = error === null;
  byId("endpoints-problem").textContent = error?.message ?? "";
}

function card(row, isChosen, choose, soon) {
  const id = `target-${row.id}`;
  const input = element("input", { type: "radio", name: "target", id, value: row.id, checked: isChosen });
  input.addEventListener("change", () => choose(row));
  const remove = element("button", { type: "button", class: "quiet", "aria-label": `Delete ${row.label}` }, "Delete");
  remove.addEventListener("click", async () => {
    if (!confirm(`Delete endpoint ${row.label}?`)) return;
    try {
      await call("DeleteEndpoint", { EndpointName: row.endpoint });
      problem(null);
    } catch (error) { problem(error); }
    soon();
  });
  return element("div", { class: row.component ? "target component" : "target" },
    element("label", {}, input,
      element("span", { class: "name" }, row.label),
      element("span", { class: `status ${row.status}` }, row.status),
      ...row.facts.map((fact) => element("span", { class: "fact soft" }, fact))),
    row.reason ? element("p", { class: "problem" }, row.reason) : null,
    row.component || !["InService", "Failed"].includes(row.status) ? null : remove);
}
