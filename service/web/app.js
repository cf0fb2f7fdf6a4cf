// The page: its forms, the list of jobs, and the one job that the address's fragment names.

import { Problem, apiKey, request, setApiKey, upload } from "./api.js";
import { JobView, clock, fromTemplate, nameOf, tellProblem } from "./job.js";

const LOOK_EVERY_MS = 15_000;
const element = (id) => document.getElementById(id);
const nothing = element("nothing");
let view = null;

// -- the job that is shown

function showJob() {
  const id = location.hash.slice(1);
  view?.close();
  view = null;
  if (/^cap_[0-9a-f]{32}$/.test(id)) {
    view = new JobView(element("job"), id, listJobs, closeJob);
    view.show();
  } else {
    element("job").replaceChildren(nothing);
  }
  markOpen();
}

function openJob(job) {
  listJobs();
  location.hash = job.id;
}

function closeJob() {
  listJobs();
  location.hash = "";
}

// -- the list

let cursor = null;
let unended = false;

async function listJobs() {
  const limit = Math.min(Math.max(element("jobs").childElementCount, 20), 100);
  try {
    const page = await request("GET", `captions?limit=${limit}`);
    element("jobs").replaceChildren();
    addJobs(page);
  } catch (problem) {
    if (problem.status === 401) wantKey(problem);
  }
}

function addJobs({ jobs, cursor: next }) {
  for (const job of jobs) element("jobs").append(rowOf(job));
  unended = jobs.some(({ status }) => status === "queued" || status === "running");
  cursor = next;
  element("more-jobs").hidden = !next;
  element("no-jobs").hidden = element("jobs").childElementCount > 0;
  markOpen();
}

function rowOf(job) {
  const row = fromTemplate("row-template");
  const link = row.querySelector("a");
  link.href = `#${job.id}`;
  row.querySelector(".name").textContent = nameOf(job);
  const length = job.source?.duration_s ? `${clock(job.source.duration_s)}, ` : "";
  row.querySelector(".about").textContent = `${length}${job.status}, ${new Date(job.created_at).toLocaleString()}`;
  return row;
}

function markOpen() {
  for (const link of element("jobs").querySelectorAll("a")) {
    if (link.getAttribute("href") === location.hash) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

element("more-jobs").onclick = async () => addJobs(await request("GET", `captions?limit=20&cursor=${encodeURIComponent(cursor)}`));

// -- a video

const videoForm = element("video");
const { file: fileInput, url: urlInput } = videoForm.elements;
const drop = element("drop");

function showChosen() {
  const [file] = fileInput.files;
  if (file) urlInput.value = "";
  element("chosen").textContent = file ? file.name : "Drop a video here, or choose one";
  drop.classList.toggle("full", Boolean(file));
}

fileInput.onchange = showChosen;
urlInput.oninput = () => {
  fileInput.value = "";
  showChosen();
};

// A file dropped beside its place must not make the browser leave the page.
for (const type of ["dragover", "drop"]) addEventListener(type, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  fileInput.files = event.dataTransfer.files;
  showChosen();
});

/** The options that are given, typed as JSON has them. */
function chosenOptions() {
  const given = [...element("options").querySelectorAll("[name]")].map((input) => {
    if (input.type === "checkbox") return [input.name, input.checked || ""];
    return [input.name, input.type === "number" && input.value !== "" ? input.valueAsNumber : input.value];
  });
  return Object.fromEntries(given.filter(([, value]) => value !== ""));
}

async function send() {
  const [file] = fileInput.files;
  const options = chosenOptions();
  if (!file && !urlInput.value) throw new Problem("Choose a video, or give the address of one.");
  if (!file) return request("POST", "captions", { url: urlInput.value, ...options });
  const form = new FormData();
  for (const [name, value] of Object.entries(options)) form.set(name, value);
  form.set("file", file); // last: the service knows the options before it reads the video
  const stop = new AbortController();
  const [sending, bar] = [element("sending"), element("sending").querySelector("progress")];
  sending.querySelector("button").onclick = () => stop.abort();
  bar.value = 0;
  sending.hidden = false;
  try {
    return await upload("captions", form, (share) => (bar.value = share), stop.signal);
  } finally {
    sending.hidden = true;
  }
}

// -- forms

/** Let `make` answer the form with a new job, and open that. */
function onSubmit(form, make) {
  form.onsubmit = async (event) => {
    event.preventDefault();
    tellProblem(form, null);
    const button = form.querySelector("button:not([type])");
    button.disabled = true;
    try {
      openJob(await make());
    } catch (problem) {
      if (problem.status === 401) wantKey(problem);
      else tellProblem(form, problem);
    } finally {
      button.disabled = false;
    }
  };
}

onSubmit(videoForm, send);
onSubmit(element("recaption"), () =>
  request("POST", "recaption", { prompt: element("prompt").value }, { Prefer: "wait=0" }));

// -- the key

function wantKey(problem) {
  element("access").open = true;
  element("key-note").hidden = false;
  element("key-note").textContent = apiKey() ? problem.message : "This service asks for an API key.";
  element("key-value").focus();
}

element("key-value").value = apiKey();
element("key").onsubmit = (event) => {
  event.preventDefault();
  setApiKey(element("key-value").value.trim());
  element("key-note").hidden = true;
  element("access").open = false;
  listJobs();
  showJob();
};

// -- whether the service can work

async function tellService() {
  if (document.hidden) return;
  let words = "The service cannot be reached";
  try {
    const { ready, checks } = await (await fetch("readyz", { cache: "no-store" })).json();
    const broken = Object.entries(checks).filter(([, check]) => !check.ok);
    words = ready ? `Ready, ${checks.workers.detail}` : broken.map(([name, check]) => `${name}: ${check.detail}`).join("; ");
  } catch {
    // said already
  }
  if (element("service").textContent !== words) element("service").textContent = words;
}

function look() {
  tellService();
  if (unended) listJobs();
}

addEventListener("hashchange", () => {
  showJob();
  const job = element("job");
  const { top } = job.getBoundingClientRect();
  job.focus({ preventScroll: true });
  if (top < 0 || top > innerHeight / 2) job.scrollIntoView();
});
document.addEventListener("visibilitychange", look);
setInterval(look, LOOK_EVERY_MS);
tellService();
listJobs();
showJob();
