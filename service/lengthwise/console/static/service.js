// What the page asks the service for. The key stays in this module, in memory.

let key = "";

export function useKey(text) {
  key = text.trim();
}

export const hasKey = () => key !== "";

/** A refusal of the service, with the places of the body that are wrong. */
export class Refusal extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? problem.error ?? `status ${status}`);
    this.status = status;
    this.title = problem.title ?? `Status ${status}`;
    this.errors = problem.errors ?? [];
    this.total = problem.errors_total ?? this.errors.length;
    this.retryAfter = retryAfter;
  }
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers, credentials: "omit" });
  if (answer.ok) return answer;
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    problem = { detail: `the server answered ${answer.status} ${answer.statusText}` };
  }
  throw new Refusal(answer.status, problem, answer.headers.get("retry-after"));
}

/** What is served, the limits of a call, and where to send it. */
export const state = async () => (await call("console/state", { headers: { accept: "application/json" } })).json();

/** The recordings of a model's data that its directory keeps: {id, label, steps}. */
export async function recordings(model) {
  const query = new URLSearchParams({ model: model.model, version: model.version });
  const text = await (await call(`console/examples?${query}`)).text();
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

/** An answer, with its milliseconds here and those that the server names. */
export async function predict(path, body) {
  const started = performance.now();
  const answer = await call(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const document = await answer.json();
  return { ...document, milliseconds: performance.now() - started, timing: answer.headers.get("server-timing") };
}

/** The sequences of a file that the server reads: {sequences, left_out, problems, doubts, taken, columns}; see `console.file_reader`. */
export async function readFile(file, model, { values = [], ...roles }) {
  const query = new URLSearchParams({ name: file.name, kind: model.input, model: model.model, version: model.version, ...roles });
  for (const name of values) query.append("values", name);
  const answer = await call(`console/sequences?${query}`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: file,
  });
  return answer.json();
}

/** The events of the live view: {event, data}, until the server or `signal` ends it. EventSource could send no key. */
export async function* events(signal) {
  const answer = await call("console/live", { signal, headers: { accept: "text/event-stream" } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = field("data");
      if (data !== undefined) yield { event: field("event") ?? "message", data };
    }
  }
}
