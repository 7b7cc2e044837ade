// Puts the page together: the chosen endpoint, the form, the conversation, what is seen of the containers.

import { code } from "./code.js";
import { byId } from "./dom.js";
import { request } from "./generation.js";
import { journal } from "./journal.js";
import { live } from "./live.js";
import { Talk } from "./talk.js";
import { targets } from "./targets.js";

const talk = new Talk();
const draft = byId("draft");
const mode = () => document.querySelector("input[name=mode]:checked").value;

function parameters() {
  const fields = new FormData(byId("parameters"));
  const number = (name) => fields.get(name) === "" ? undefined : Number(fields.get(name));
  const stop = fields.get("stop").split("\n").filter((line) => line !== "");
  return {
    max_tokens: number("max_tokens"), temperature: number("temperature"), top_p: number("top_p"),
    seed: number("seed"), stop: stop.length ? stop : undefined,
  };
}

/** What Send asks for now; null without an endpoint. */
function wanted(prompt) {
  const target = list.chosen();
  if (target === null) return null;
  const system = byId("parameters").elements.system.value;
  const messages = [
    ...(system === "" ? [] : [{ role: "system", content: system }]), ...talk.messages, { role: "user", content: prompt },
  ];
  const { endpoint, component } = target;
  return { mode: mode(), endpoint, component, messages, prompt, parameters: parameters() };
}

function refresh() {
  const target = list?.chosen() ?? null;
  const isChat = mode() === "chat";
  byId("system-field").hidden = !isChat;
  byId("send").disabled = talk.busy || target === null || target.obstacle !== null;
  byId("stop").disabled = !talk.busy;
  byId("route").textContent = target === null ? "" : `POST ${request(wanted("")).path}`;
  draft.placeholder = !target ? "Create an endpoint first"
    : target.obstacle ? `${target.label} ${target.obstacle}`
      : isChat ? "Say something: Enter sends, Shift+Enter is a new line, Esc stops"
        : "Begin a text that the model goes on with, such as: Once upon a time";
  showCode?.();
}

async function send() {
  const prompt = draft.value;
  if (prompt.trim() === "" || byId("send").disabled) return;
  const asked = wanted(prompt);
  draft.value = "";
  const done = talk.ask(prompt, asked);
  refresh();
  lookAtMetrics();
  if (!await done && draft.value === "") draft.value = prompt; // to be sent again, or changed
  refresh();
}

function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of all) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      byId(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
  };
  all.forEach((tab, index) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
      if (step === undefined) return;
      const next = all.at((index + step) % all.length);
      select(next);
      next.focus();
    });
  });
}

let showCode = null;
let list = null;
list = targets({ changed: refresh });
showCode = code({ wanted: () => wanted(draft.value || "Hello") });
const lookAtMetrics = live({ target: list.chosen, busy: () => talk.busy });
journal({ target: list.chosen });
tabs(document.querySelector("[role=tablist]"));

byId("create-code").textContent = `import boto3
sm = boto3.client("sagemaker", endpoint_url="${location.origin}",
    region_name="us-east-1", aws_access_key_id="local",
    aws_secret_access_key="local")
sm.create_model(ModelName="mine",
    ExecutionRoleArn="arn:aws:iam::123456789012:role/any",
    PrimaryContainer={"Image": "any", "Environment": {
        "HF_MODEL_ID": "demo"}})  # or a folder, a Hub id
sm.create_endpoint_config(EndpointConfigName="mine",
    ProductionVariants=[{"VariantName": "AllTraffic",
        "ModelName": "mine", "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1}])
sm.create_endpoint(EndpointName="mine",
    EndpointConfigName="mine")`;

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("parameters").addEventListener("submit", (event) => event.preventDefault());
byId("stop").addEventListener("click", () => { talk.stop(); draft.focus(); });
byId("clear").addEventListener("click", () => { talk.clear(); draft.focus(); refresh(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") talk.stop(); });
document.addEventListener("input", refresh);
draft.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
refresh();
