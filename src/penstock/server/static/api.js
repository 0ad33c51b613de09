/* Talking to the server. Addresses are relative, so that the page works below a path as well. */

export const kept = {
  read(name) { try { return localStorage.getItem(`penstock.${name}`) ?? ""; } catch { return ""; } },
  write(name, value) { try { localStorage.setItem(`penstock.${name}`, value); } catch { /* full or forbidden: not kept */ } },
};

export const SILENT = "The server does not answer.";

export class Problem extends Error {
  constructor(message, status, code) { super(message); this.status = status; this.code = code; }
}

export async function ask(method, url, { body, version, headers = {}, signal } = {}) {
  const key = kept.read("key");
  if (key) headers = { ...headers, Authorization: `Bearer ${key}` };
  if (version) headers = { ...headers, "If-Match": `"${version}"` };
  if (body) headers = { ...headers, "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(url, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(SILENT, 0);
  }
  if (response.ok || response.status === 304) return response;
  let error = {};
  try { error = (await response.json()).error; } catch { /* not the server's own answer */ }
  throw new Problem(error.message ?? `The server answered with ${response.status}.`, response.status, error.code);
}

export async function json(method, url, options) { return (await ask(method, url, options)).json(); }

/* Server-sent events, which EventSource cannot ask for with a key. */
export async function* events(url, signal) {
  const response = await ask("GET", url, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const event = { name: "message", data: "" };
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      yield { name: event.name, data: JSON.parse(event.data || "{}") };
    }
  }
}
