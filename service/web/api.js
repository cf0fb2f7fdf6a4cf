// The service's API as the page uses it: requests, uploads with progress, and events that go on after a broken connection.
//
// EventSource can send no key, so events come by fetch, with a key or without: the same `Last-Event-ID`, the same pauses.

const KEY = "sharecap-key";
const SILENCE_MS = 45_000; // three heartbeats
const LONGEST_PAUSE_MS = 30_000;
const LAST_TYPES = new Set(["completed", "failed", "cancelled"]);

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What the service refused, in its own words; `status` is 0 where it was not reached. */
export class Problem extends Error {
  constructor(detail, status = 0, code = "") {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

function problemFrom(status, text) {
  try {
    const { detail, code } = JSON.parse(text);
    if (typeof detail === "string") return new Problem(detail, status, code);
  } catch {
    // whatever stands before the service has its own way of refusing
  }
  return new Problem(`The service answers ${status}.`, status);
}

function headersWith(headers) {
  return apiKey() ? { ...headers, Authorization: `Bearer ${apiKey()}` } : headers;
}

async function open(path, { method = "GET", headers = {}, body, signal } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, headers: headersWith(headers), body, signal, cache: "no-store" });
  } catch (error) {
    throw signal?.aborted ? error : new Problem("The service cannot be reached.");
  }
  if (!answer.ok) throw problemFrom(answer.status, await answer.text());
  return answer;
}

/** Return the JSON of an answer, null where it has no body. Raises Problem. */
export async function request(method, path, values, headers = {}) {
  const json = values === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await open(path, { method, headers: { ...json, ...headers }, body: JSON.stringify(values) });
  return answer.status === 204 ? null : answer.json();
}

/** Return a picture as a Blob: an <img> sends no key. */
export const picture = async (path, signal) => (await open(path, { signal })).blob();

/** Send a form; `tell` gets the share that is sent, 0 to 1. Returns the new job. Fetch tells no progress of a body. */
export function upload(path, form, tell, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(headersWith({}))) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && tell(event.loaded / event.total);
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(problemFrom(sending.status, sending.responseText));
    };
    sending.onerror = () => reject(new Problem("The connection broke while the video was being sent."));
    sending.onabort = () => reject(new Problem("Stopped."));
    signal.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}

/**
 * Yield a job's events, {type, data}, from the first to the last, over as many connections as it takes. `interrupted`
 * comes when one breaks. Raises Problem where the service refuses; ends when `signal` says so.
 */
export async function* follow(id, signal) {
  const place = { last: "", pauseMs: 2000 };
  for (let broken = 0; !signal.aborted; broken += 1) {
    try {
      for await (const event of connection(id, place, signal)) {
        broken = 0;
        yield event;
        if (LAST_TYPES.has(event.type)) return;
      }
      if (place.ended) return;
    } catch (error) {
      const refused = error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (refused) throw error;
    }
    if (signal.aborted) return;
    yield { type: "interrupted", data: {} };
    await pause(Math.min(place.pauseMs * 2 ** broken, LONGEST_PAUSE_MS), signal);
  }
}

async function* connection(id, place, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    const headers = { Accept: "text/event-stream", ...(place.last && { "Last-Event-ID": place.last }) };
    const both = AbortSignal.any([signal, silence.signal]);
    const answer = await open(`captions/${id}/events`, { headers, signal: both });
    place.ended = answer.status === 204;
    if (place.ended) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parse(part, place);
        if (event) yield event;
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

function parse(part, place) {
  const fields = {};
  for (const line of part.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (fields.retry) place.pauseMs = Number(fields.retry);
  if (fields.data === undefined) return null; // a heartbeat
  if (fields.id) place.last = fields.id;
  return { type: fields.event, data: JSON.parse(fields.data) };
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
