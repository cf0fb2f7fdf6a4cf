// The page's client for the service's API: requests, uploads with progress, and event streams that resume.
//
// Streams use fetch because EventSource cannot send an API key. They reconnect as EventSource does: with
// `Last-Event-ID`, after the delay that the service sends as `retry`.

import { FINAL_STATUSES, HEARTBEAT_MS, RETRY_MS } from "./contract.js";

const KEY = "sharecap-key";
const MAX_SILENCE_MS = 3 * HEARTBEAT_MS;
const MAX_RETRY_MS = 30_000;
const MAX_TRIES = 10;
const MAX_WAIT_S = 30; // a request that would have to wait longer fails at once
const NEVER = new AbortController().signal;
export const NEEDS_KEY = "Enter an API key above.";

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

export function setApiKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/**
 * An error reported by the service; `status` is 0 if the service could not be reached. `retryAfterS` is the time after
 * which the service accepts the request again.
 */
export class Problem extends Error {
  constructor(detail, status = 0, code = "", retryAfterS = 1) {
    super(detail);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

function problemFrom(status, text, retryAfter) {
  if (status === 401) return new Problem(apiKey() ? "This API key is not valid." : NEEDS_KEY, status, "unauthorized");
  try {
    const { detail, code } = JSON.parse(text);
    if (typeof detail === "string") return new Problem(detail, status, code, Number(retryAfter) || 1);
  } catch {
    // a proxy in front of the service may answer with something other than JSON
  }
  return new Problem(`The service answered with status ${status}.`, status);
}

function withKey(headers) {
  return apiKey() ? { ...headers, Authorization: `Bearer ${apiKey()}` } : headers;
}

async function open(path, { method = "GET", headers = {}, body, signal } = {}) {
  let response;
  try {
    response = await fetch(path, { method, headers: withKey(headers), body, signal, cache: "no-store" });
  } catch (error) {
    throw signal?.aborted ? error : new Problem("The service cannot be reached.");
  }
  if (!response.ok) {
    throw problemFrom(response.status, await response.text(), response.headers.get("Retry-After"));
  }
  return response;
}

/**
 * Return the JSON body of the response, or null if it has none. A request that the rate limit refuses is sent again
 * later; `onWait` receives the problem meanwhile. Throws Problem.
 */
export async function request(method, path, { values, headers = {}, signal = NEVER, onWait } = {}) {
  const json = values === undefined ? {} : { "Content-Type": "application/json" };
  const options = { method, headers: { ...json, ...headers }, body: JSON.stringify(values), signal };
  const response = await retryWhenLimited(() => open(path, options), signal, { onWait });
  return response.status === 204 ? null : response.json();
}

/** Return an image as a Blob; an <img> element cannot send an API key. */
export const fetchImage = (path, signal) => retryWhenLimited(async () => (await open(path, { signal })).blob(), signal);

/** Call `send` until the rate limit no longer refuses it. `onWait` receives the problem before each wait. */
export async function retryWhenLimited(send, signal, { onWait, maxTries = MAX_TRIES, maxWaitS = MAX_WAIT_S } = {}) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await send();
    } catch (problem) {
      if (problem.status !== 429 || tries >= maxTries || problem.retryAfterS > maxWaitS) throw problem;
      onWait?.(problem);
      await sleep(1000 * problem.retryAfterS, signal);
      signal.throwIfAborted();
    }
  }
}

/**
 * Send a form and return the new job. `onProgress` receives the fraction sent so far, 0 to 1. This uses XMLHttpRequest
 * because fetch does not report upload progress.
 */
export function upload(path, form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    for (const [name, value] of Object.entries(withKey({}))) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(problemFrom(sending.status, sending.responseText, sending.getResponseHeader("Retry-After")));
    };
    sending.onerror = () => reject(new Problem("The connection was lost during the upload."));
    sending.onabort = () => reject(new Problem("The upload was stopped."));
    signal.addEventListener("abort", () => sending.abort(), { once: true });
    sending.send(form);
  });
}

/**
 * Yield a job's events, {type, data}, from the first to the final one, reconnecting as often as needed. Yields an
 * `interrupted` event whenever a connection is lost. Throws Problem if the service refuses; ends when `signal` aborts.
 */
export async function* follow(id, signal) {
  const position = { lastEventId: "", retryMs: RETRY_MS, ended: false };
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      for await (const event of readStream(id, position, signal)) {
        failures = 0;
        yield event;
        if (FINAL_STATUSES.has(event.type)) return;
      }
      if (position.ended) return;
    } catch (error) {
      const refused = error instanceof Problem && error.status >= 400 && error.status < 500 && error.status !== 429;
      if (refused) throw error;
    }
    if (signal.aborted) return;
    yield { type: "interrupted", data: {} };
    await sleep(Math.min(position.retryMs * 2 ** failures, MAX_RETRY_MS), signal);
  }
}

/** Yield the events of one connection, and keep `position` up to date. */
async function* readStream(id, position, signal) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), MAX_SILENCE_MS);
  try {
    const resume = position.lastEventId && { "Last-Event-ID": position.lastEventId };
    const headers = { Accept: "text/event-stream", ...resume };
    const either = AbortSignal.any([signal, silence.signal]);
    const response = await open(`captions/${id}/events`, { headers, signal: either });
    position.ended = response.status === 204;
    if (position.ended) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", { value, done } = await reader.read(); !done; { value, done } = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), MAX_SILENCE_MS);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const event = parse(part, position);
        if (event) yield event;
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

/** Return the event in one part of the stream, or null for a heartbeat or a `retry` field. */
function parse(part, position) {
  const fields = {};
  for (const line of part.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (fields.retry) position.retryMs = Number(fields.retry);
  if (fields.data === undefined) return null;
  if (fields.id) position.lastEventId = fields.id;
  return { type: fields.event, data: JSON.parse(fields.data) };
}

export function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}
