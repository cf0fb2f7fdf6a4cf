// The page: its forms, the list of jobs, and the job named in the URL fragment.

import { Problem, apiKey, request, setApiKey, upload } from "./api.js";
import { FINAL_STATUSES, JOB_ID, MAX_PAGE_SIZE, PAGE_SIZE } from "./contract.js";
import { element, fromTemplate, showProblem } from "./dom.js";
import { clock, jobName } from "./format.js";
import { JobView } from "./job.js";

const REFRESH_MS = 15_000;
const placeholder = element("placeholder");
let view = null;

// -- the selected job

function showSelectedJob() {
  const id = location.hash.slice(1);
  view?.close();
  view = null;
  if (JOB_ID.test(id)) {
    view = new JobView(element("job"), id, listJobs, deselectJob);
    view.show();
  } else {
    element("job").replaceChildren(placeholder);
  }
  markSelectedJob();
}

function selectJob(job) {
  listJobs();
  location.hash = job.id;
}

function deselectJob() {
  listJobs();
  location.hash = "";
}

// -- the job list

let cursor = null;
let hasUnfinishedJobs = false;

async function listJobs() {
  const limit = Math.min(Math.max(element("jobs").childElementCount, PAGE_SIZE), MAX_PAGE_SIZE);
  try {
    const page = await request("GET", `captions?limit=${limit}`);
    element("jobs").replaceChildren();
    addJobs(page);
  } catch (problem) {
    if (problem.status === 401) askForKey(problem);
  }
}

function addJobs({ jobs, cursor: next }) {
  for (const job of jobs) element("jobs").append(rowOf(job));
  hasUnfinishedJobs = jobs.some(({ status }) => !FINAL_STATUSES.has(status));
  cursor = next;
  element("more-jobs").hidden = !next;
  element("no-jobs").hidden = element("jobs").childElementCount > 0;
  markSelectedJob();
}

function rowOf(job) {
  const row = fromTemplate("row-template");
  const link = row.querySelector("a");
  link.href = `#${job.id}`;
  row.querySelector(".name").textContent = jobName(job);
  const duration = job.source?.duration_s ? `${clock(job.source.duration_s)}, ` : "";
  row.querySelector(".about").textContent = `${duration}${job.status}, ${new Date(job.created_at).toLocaleString()}`;
  return row;
}

function markSelectedJob() {
  for (const link of element("jobs").querySelectorAll("a")) {
    if (link.getAttribute("href") === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

element("more-jobs").onclick = async () => {
  addJobs(await request("GET", `captions?limit=${PAGE_SIZE}&cursor=${encodeURIComponent(cursor)}`));
};

// -- the video form

const videoForm = element("video");
const { file: fileInput, url: urlInput } = videoForm.elements;
const drop = element("drop");

function showChosenFile() {
  const [file] = fileInput.files;
  if (file) urlInput.value = "";
  element("chosen").textContent = file ? file.name : "Drop a video here, or click to choose a file";
  drop.classList.toggle("full", Boolean(file));
}

fileInput.onchange = showChosenFile;
urlInput.oninput = () => {
  fileInput.value = "";
  showChosenFile();
};

// A file dropped outside the drop area must not make the browser navigate away.
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  fileInput.files = event.dataTransfer.files;
  showChosenFile();
});

/** Return the options that were filled in, with their JSON types. */
function chosenOptions() {
  const values = [...element("options").querySelectorAll("[name]")].map((input) => {
    if (input.type === "checkbox") return [input.name, input.checked || ""];
    return [input.name, input.type === "number" && input.value !== "" ? input.valueAsNumber : input.value];
  });
  return Object.fromEntries(values.filter(([, value]) => value !== ""));
}

async function submitVideo() {
  const [file] = fileInput.files;
  const options = chosenOptions();
  if (!file && !urlInput.value) throw new Problem("Choose a file or enter a URL.");
  if (!file) return request("POST", "captions", { url: urlInput.value, ...options });
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) form.set(name, value);
  form.set("file", file); // last, so that the service knows the options before it reads the video
  const stop = new AbortController();
  const [sending, bar] = [element("sending"), element("sending").querySelector("progress")];
  sending.querySelector("button").onclick = () => stop.abort();
  bar.value = 0;
  sending.hidden = false;
  try {
    return await upload("captions", form, (fraction) => (bar.value = fraction), stop.signal);
  } finally {
    sending.hidden = true;
  }
}

// -- all forms that create jobs

/** When the form is submitted, create a job with `createJob` and select it. */
function onSubmit(form, createJob) {
  form.onsubmit = async (event) => {
    event.preventDefault();
    showProblem(form, null);
    const button = form.querySelector("button:not([type])");
    button.disabled = true;
    try {
      selectJob(await createJob());
    } catch (problem) {
      if (problem.status === 401) askForKey(problem);
      else showProblem(form, problem);
    } finally {
      button.disabled = false;
    }
  };
}

onSubmit(videoForm, submitVideo);
onSubmit(element("recaption"), () =>
  request("POST", "recaption", { prompt: element("prompt").value }, { Prefer: "wait=0" }));

// -- the API key

function askForKey(problem) {
  element("access").open = true;
  element("key-note").hidden = false;
  element("key-note").textContent = apiKey() ? problem.message : "This service requires an API key.";
  element("key-value").focus();
}

element("key-value").value = apiKey();
element("key").onsubmit = (event) => {
  event.preventDefault();
  setApiKey(element("key-value").value.trim());
  element("key-note").hidden = true;
  element("access").open = false;
  listJobs();
  showSelectedJob();
};

// -- the state of the service

async function showReadiness() {
  if (document.hidden) return;
  let text = "The service cannot be reached";
  try {
    const { ready, checks } = await (await fetch("readyz", { cache: "no-store" })).json();
    const failed = Object.entries(checks).filter(([, check]) => !check.ok);
    const problems = failed.map(([name, check]) => `${name}: ${check.detail}`);
    text = ready ? `Ready, ${checks.workers.detail}` : problems.join("; ");
  } catch {
    // `text` already says so
  }
  if (element("service").textContent !== text) element("service").textContent = text;
}

function refresh() {
  showReadiness();
  if (hasUnfinishedJobs) listJobs();
}

addEventListener("hashchange", () => {
  showSelectedJob();
  const job = element("job");
  const { top } = job.getBoundingClientRect();
  job.focus({ preventScroll: true });
  if (top < 0 || top > innerHeight / 2) job.scrollIntoView();
});
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
showReadiness();
listJobs();
showSelectedJob();
