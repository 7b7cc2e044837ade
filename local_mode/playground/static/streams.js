// Bytes as they come to messages: server-sent events, and the frames of AWS's event stream that carry them.

import { parsed, Refused } from "./emulator.js";

/** The `data` of each server-sent event, for bytes that may be cut anywhere. */
export async function* events(chunks) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks) {
    rest += decoder.decode(chunk, { stream: true });
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

/**
 * The payloads of `vnd.amazon.eventstream` frames. A frame is its length, its headers' length and a checksum of both
 * (4 bytes each, big endian), then headers, payload and a checksum; TCP has checked what the checksums would.
 */
export async function* payloads(chunks) {
  let rest = new Uint8Array();
  for await (const chunk of chunks) {
    rest = joined(rest, chunk);
    while (rest.length >= 12) {
      const prelude = new DataView(rest.buffer, rest.byteOffset, 12);
      const [length, headersLength] = [prelude.getUint32(0), prelude.getUint32(4)];
      if (rest.length < length) break;
      const headers = stringHeaders(rest.subarray(12, 12 + headersLength));
      const payload = rest.subarray(12 + headersLength, length - 4);
      rest = rest.subarray(length);
      if (headers[":message-type"] !== "event") throw exception(headers, payload);
      yield payload;
    }
  }
  if (rest.length) throw new Error("The stream ended within a frame.");
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

/** Each is a name with its length in one byte, the type 7 (string), and a value with its length in two. */
function stringHeaders(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = (start, length) => new TextDecoder().decode(bytes.subarray(start, start + length));
  const headers = {};
  for (let at = 0; at < bytes.length;) {
    const nameLength = view.getUint8(at);
    const value = at + 1 + nameLength + 1;
    const valueLength = view.getUint16(value);
    headers[text(at + 1, nameLength)] = text(value + 2, valueLength);
    at = value + 2 + valueLength;
  }
  return headers;
}

function exception(headers, payload) {
  const text = new TextDecoder().decode(payload);
  const refused = Refused.from(200, parsed(text), text);
  refused.members.type ??= headers[":exception-type"] ?? headers[":error-code"];
  return refused;
}
