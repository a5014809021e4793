// Talks to the server: JSON, server-sent events, and the key, which is kept in this variable alone.

let key = "";

/** Told when the server wants a key; gives the key, or null. Set by main.js. */
export const ask = { forKey: async () => null };

/** What the server says went wrong. */
export class Refusal extends Error {
  constructor(status, message, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** Send a request and give its response, once it is a good one. `body` is an object (sent as JSON) or FormData. */
export async function send(path, { body, method = body === undefined ? "GET" : "POST", signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  const isForm = body instanceof FormData;
  if (body !== undefined && !isForm) headers["Content-Type"] = "application/json";
  const content = body === undefined || isForm ? body : JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, { method, headers, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Does it still run?");
  }
  if (response.ok) return response;
  if (response.status === 401) {
    const given = await ask.forKey();
    if (given) {
      key = given;
      return send(path, { method, body, signal });
    }
  }
  const error = (await response.json().catch(() => ({}))).error ?? {};
  throw new Refusal(response.status, error.message ?? `The server answered ${response.status}.`, error.code);
}

/** The answer to a request as a value. */
export async function call(path, options) {
  return (await send(path, options)).json();
}

/** The events of an answer, each `{id, data}`, as they come. */
export async function* events(path, options) {
  const response = await send(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = { id: null, data: "" };
        for (const line of part.split("\n")) {
          if (line.startsWith("data: ")) event.data += line.slice(6);
          else if (line.startsWith("id: ")) event.id = line.slice(4);
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The events of a request for text, as `/v2/query` sends them. Throws what the server says in mid-stream. */
export async function* writing(body, signal) {
  for await (const { data } of events("/v2/query", { body: { ...body, stream: true }, signal })) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refusal(500, event.error.message, event.error.code);
    yield event;
  }
}
