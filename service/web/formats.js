// Writes a job's captions as a file. The client's formats.py does the same; a test compares their results.

const MIN_LAST_S = 1; // the last keyframe is often the last frame of the video
const UNKNOWN_LENGTH_S = 5;
const MAX_NAME_CHARS = 80;
const CSV_COLUMNS = ["job", "name", "keyframe", "start_s", "end_s", "text"];

/** The formats by the suffix of their files. `timed` ones need times, which a recaption does not have. */
export const FORMATS = {
  json: { label: "JSON", type: "application/json", timed: false, write: (job) => `${JSON.stringify(job, null, 2)}\n` },
  srt: { label: "SRT", type: "application/x-subrip", timed: true, write: asSrt },
  vtt: { label: "WebVTT", type: "text/vtt", timed: true, write: asVtt },
  md: { label: "Markdown", type: "text/markdown", timed: false, write: asMarkdown },
  csv: { label: "CSV", type: "text/csv", timed: true, write: asCsv },
};

/** Return the name of the file in which the job's captions are saved. */
export function fileName(job, suffix) {
  const stem = (job.source?.filename ?? job.kind).replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "_");
  return `${stem || job.id}.${suffix}`;
}

/** Return the timed texts of a job: a differential caption is in force until the next one. */
function partsOf(job) {
  const texts = job.differentials;
  if (!texts.length) {
    const startS = job.options.start_s ?? 0;
    return job.caption === null ? [] : [{ startS, endS: endOf(job, startS), text: job.caption, keyframe: null }];
  }
  return texts.map(({ keyframe, time_s, text }, index) => {
    const endS = texts[index + 1]?.time_s ?? endOf(job, time_s);
    return { startS: time_s, endS, text, keyframe };
  });
}

function endOf(job, startS) {
  const limits = [job.options.end_s, job.source?.duration_s].filter((limit) => typeof limit === "number");
  return Math.max(limits.length ? Math.min(...limits) : startS + UNKNOWN_LENGTH_S, startS + MIN_LAST_S);
}

function nameOf(job) {
  const name = job.source?.filename || job.source?.url || job.options.prompt || job.parent || job.id;
  const { start_s: startS = null, end_s: endS = null } = job.options;
  const part = startS === null && endS === null ? "" : ` (${clock(startS ?? 0)}–${endS ? clock(endS) : "end"})`;
  return [...oneLine(name)].slice(0, MAX_NAME_CHARS).join("") + part;
}

const pad = (value, digits = 2) => String(value).padStart(digits, "0");

/** Return whole minutes and the remaining seconds and milliseconds. */
function split(seconds) {
  const ms = Math.round(seconds * 1000);
  return [Math.floor(ms / 60_000), Math.floor((ms % 60_000) / 1000), ms % 1000];
}

function clock(value) {
  const [minutes, seconds, ms] = split(value);
  const start = minutes >= 60 ? `${Math.floor(minutes / 60)}:${pad(minutes % 60)}` : `${minutes}`;
  return `${start}:${pad(seconds)}.${pad(ms, 3)}`;
}

function timestamp(value, point) {
  const [minutes, seconds, ms] = split(value);
  return `${pad(Math.floor(minutes / 60))}:${pad(minutes % 60)}:${pad(seconds)}${point}${pad(ms, 3)}`;
}

const oneLine = (text) => text.split(/\s+/).filter(Boolean).join(" ");
const escapeMarkdown = (text) => text.replace(/[\\`*_[\]<>|~]/g, "\\$&");
const escapeVtt = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Return a text that cannot end its cue: without empty lines, control characters and arrows. */
function cue(text) {
  const lines = text.split(/\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/);
  const cleaned = lines.map((line) => line.replace(/[\s\x00-\x1f\x7f]/g, " ").trim()).filter(Boolean);
  return cleaned.join("\n").replaceAll("-->", "→") || "…";
}

function asSrt(job) {
  return partsOf(job).map(({ startS, endS, text }, index) =>
    `${index + 1}\n${timestamp(startS, ",")} --> ${timestamp(endS, ",")}\n${cue(text)}\n\n`).join("");
}

function asVtt(job) {
  const cues = partsOf(job).map(({ startS, endS, text }) =>
    `\n${timestamp(startS, ".")} --> ${timestamp(endS, ".")}\n${escapeVtt(cue(text))}\n`);
  return `WEBVTT\n${cues.join("")}`;
}

function asMarkdown(job) {
  const lines = [`# ${escapeMarkdown(nameOf(job))}`];
  if (job.caption !== null) lines.push("", escapeMarkdown(job.caption));
  const listed = partsOf(job).filter(({ keyframe }) => keyframe !== null);
  const items = listed.map(({ startS, text }) => `- **${clock(startS)}** ${escapeMarkdown(oneLine(text))}`);
  return `${[...lines, ...(items.length ? ["", ...items] : [])].join("\n")}\n`;
}

function asCsv(job) {
  const rows = partsOf(job).filter(({ keyframe }) => keyframe !== null);
  if (job.caption !== null) {
    const startS = rows.length ? rows[0].startS : job.options.start_s ?? 0;
    rows.push({ startS, endS: endOf(job, startS), text: job.caption, keyframe: null });
  }
  const cells = rows.map(({ startS, endS, text, keyframe }) =>
    [job.id, nameOf(job), keyframe ?? "", startS.toFixed(3), endS.toFixed(3), text]);
  return [CSV_COLUMNS, ...cells].map((row) => `${row.map(csvCell).join(",")}\n`).join("");
}

const csvCell = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
