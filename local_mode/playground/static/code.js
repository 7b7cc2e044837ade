// The current request as a program to take away.

import { byId, copies } from "./dom.js";
import { request } from "./generation.js";

/** `wanted()` is the request that Send would make. Returns what to call when it may have changed. */
export function code({ wanted }) {
  const chosen = () => document.querySelector("input[name=client]:checked").value;
  const show = () => { byId("snippet").textContent = snippet(chosen(), wanted(), location.origin); };
  document.querySelectorAll("input[name=client]").forEach((input) => input.addEventListener("change", show));
  copies(byId("code-copy"), () => byId("snippet").textContent);
  return show;
}

export function snippet(client, wanted, origin) {
  if (wanted === null) return "# choose an endpoint first";
  return { curl, boto3, openai }[client](wanted, origin);
}

function curl(wanted, origin) {
  const { path, headers, body } = request(wanted);
  // The framing of a response stream is not for eyes: the same body to the other route comes back as it is.
  const readable = path.replace(/-response-stream$/, "");
  const options = Object.entries(headers).map(([name, value]) => `-H ${shell(`${name}: ${value}`)}`);
  return [`curl -N ${shell(origin + readable)}`, ...options, `-d ${shell(JSON.stringify(body))}`].join(" \\\n  ");
}

function boto3(wanted, origin) {
  const { body } = request(wanted);
  const component = wanted.component ? `\n    InferenceComponentName=${python(wanted.component)},` : "";
  return `import json, sys
import boto3

runtime = boto3.client("sagemaker-runtime", endpoint_url=${python(origin)}, region_name="us-east-1",
                       aws_access_key_id="local", aws_secret_access_key="local")
reply = runtime.invoke_endpoint_with_response_stream(
    EndpointName=${python(wanted.endpoint)},${component}
    ContentType="application/json",
    Body=json.dumps(${python(body)}),
)
for event in reply["Body"]:
    sys.stdout.buffer.write(event["PayloadPart"]["Bytes"])
`;
}

function openai(wanted, origin) {
  if (wanted.mode !== "chat") {
    return "# the OpenAI route of SageMaker is for chat: choose Chat above, or boto3 here";
  }
  const { path, body: { stream_options, ...body } } = request(wanted);
  const base = origin + path.replace(/\/chat\/completions$/, "");
  const given = Object.entries(body).filter(([, value]) => value !== undefined);
  return `from openai import OpenAI

client = OpenAI(base_url=${python(base)}, api_key="local")
stream = client.chat.completions.create(
${given.map(([name, value]) => `    ${name}=${python(value)},\n`).join("")})
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A literal of Python; members that JSON would leave out are left out. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    return `{${members.map(([name, member]) => `${python(name)}: ${python(member)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
