// What the page asks of the emulator, and errors as they came. Knows no elements.

/** An answer that is no success: `status`, and `members` as the document gave them, the message among them. */
export class Refused extends Error {
  constructor(status, members) {
    super(members.message);
    this.status = status;
    this.members = members;
  }

  /** From any of the documents that say an error here: OpenAI's, SageMaker's, the container's own, or none. */
  static from(status, document, text = "") {
    if (document === null || typeof document !== "object") {
      return new Refused(status, { message: text.trim() || "no explanation" });
    }
    if (typeof document.error === "object" && document.error !== null) return new Refused(status, { ...document.error });
    const { Message, OriginalMessage, OriginalStatusCode, __type, error, error_type, ...others } = document;
    const inner = parsed(OriginalMessage);
    const cause = inner === null
      ? { message: OriginalMessage ?? Message ?? error ?? document.message, type: __type ?? error_type }
      : Refused.from(OriginalStatusCode, inner).members;
    const status_of = OriginalStatusCode === undefined ? {} : { "container's status": OriginalStatusCode };
    return new Refused(status, { ...others, ...status_of, ...cause });
  }
}

export function parsed(text) {
  try { return JSON.parse(text); } catch { return null; }
}

/** `fetch`, whose answer is a success. */
export async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const text = await answer.text();
  const refused = Refused.from(answer.status, parsed(text), text);
  const type = answer.headers.get("x-amzn-errortype");
  if (type && !refused.members.type) refused.members.type = type;
  throw refused;
}

const read = async (path) => (await ask(path)).json();

export const endpoints = () => read("/playground/endpoints");

export const metrics = ({ endpoint, component }) =>
  read(`${here(endpoint)}/metrics${component ? `?component=${encodeURIComponent(component)}` : ""}`);

export const logs = ({ endpoint }, cursor) =>
  read(`${here(endpoint)}/logs${cursor === null ? "" : `?after=${encodeURIComponent(cursor)}`}`);

const here = (endpoint) => `/playground/endpoints/${encodeURIComponent(endpoint)}`;

/** An operation of the control plane, as the SDKs call it. */
export async function call(operation, members) {
  const headers = { "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": `SageMaker.${operation}` };
  const answer = await ask("/", { method: "POST", headers, body: JSON.stringify(members) });
  return parsed(await answer.text()) ?? {};
}

const ROLE = "arn:aws:iam::123456789012:role/any";

/** Model, configuration and endpoint of the demo model under the first name that is free; returns the name. */
export async function createDemo() {
  for (let number = 1; ; number += 1) {
    const name = number === 1 ? "demo" : `demo-${number}`;
    try {
      await call("CreateModel", {
        ModelName: name, ExecutionRoleArn: ROLE,
        PrimaryContainer: { Image: "textgen-endpoint:demo", Environment: { HF_MODEL_ID: "demo" } },
      });
      await call("CreateEndpointConfig", {
        EndpointConfigName: name,
        ProductionVariants: [
          { VariantName: "AllTraffic", ModelName: name, InstanceType: "ml.m5.large", InitialInstanceCount: 1 },
        ],
      });
      await call("CreateEndpoint", { EndpointName: name, EndpointConfigName: name });
      return name;
    } catch (error) {
      if (!(error instanceof Refused) || !/already existing/.test(error.message)) throw error;
    }
  }
}
