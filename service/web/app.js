// The page: the job named in the URL fragment, the API key, and the state of the service.

import { apiKey, setApiKey } from "./api.js";
import { JOB_ID } from "./contract.js";
import { element, showProblem } from "./dom.js";
import { chosenOptions, installForms } from "./forms.js";
import { JobView } from "./job.js";
import { JobList } from "./jobs.js";
import { Queue } from "./queue.js";

const REFRESH_MS = 15_000;
const placeholder = element("placeholder");
const jobs = new JobList(askForKey);
const queue = new Queue(onQueuedJob, askForKey);
let view = null;

// -- the selected job

function showSelectedJob() {
  const id = location.hash.slice(1);
  const selected = JOB_ID.test(id);
  view?.close();
  view = null;
  document.title = "sharecap";
  if (selected) {
    view = new JobView(element("job"), id, {
      onChange: () => jobs.show(), onDelete: () => selectJob(), onUnauthorized: askForKey });
    view.show();
  } else {
    element("job").replaceChildren(placeholder);
  }
  jobs.markSelected();
}

function selectJob(job) {
  jobs.show();
  location.hash = job?.id ?? "";
}

/** Show the first job of a queue, and list the others. */
function onQueuedJob(job) {
  if (view && queue.entries.filter((entry) => entry.job).length > 1) jobs.show();
  else selectJob(job);
}

addEventListener("hashchange", () => {
  showSelectedJob();
  const job = element("job");
  const { top } = job.getBoundingClientRect();
  job.focus({ preventScroll: true });
  if (top < 0 || top > innerHeight / 2) job.scrollIntoView();
});

installForms(queue, selectJob, askForKey);

element("try-sample").onclick = async () => {
  showProblem(placeholder, null);
  try {
    const video = await (await fetch("web/sample.mp4")).blob();
    queue.add([new File([video], "sample.mp4", { type: "video/mp4" })], chosenOptions());
  } catch {
    showProblem(placeholder, { message: "The service cannot be reached." });
  }
};

// -- the API key

function askForKey(problem) {
  element("access").open = true;
  element("key-note").hidden = false;
  element("key-note").textContent = apiKey() ? problem.message : "This service requires an API key.";
  element("key-value").focus();
  jobs.showNeedsKey();
}

element("key-value").value = apiKey();
element("key").onsubmit = (event) => {
  event.preventDefault();
  setApiKey(element("key-value").value.trim());
  element("key-note").hidden = true;
  element("access").open = false;
  jobs.show();
  showSelectedJob();
};

// -- the state of the service

async function showReadiness() {
  if (document.hidden) return;
  let text = "The service cannot be reached";
  try {
    const { ready, checks, demonstration } = await (await fetch("readyz", { cache: "no-store" })).json();
    const failed = Object.entries(checks).filter(([, check]) => !check.ok);
    const problems = failed.map(([name, check]) => `${name}: ${check.detail}`);
    text = ready ? `Ready: ${checks.workers.detail}` : `Not ready: ${problems.join("; ")}`;
    element("banner").textContent = demonstration ?? "";
    element("banner").hidden = !demonstration;
  } catch {
    // `text` already says so
  }
  if (element("service").textContent !== text) element("service").textContent = text;
}

function refresh() {
  showReadiness();
  if (jobs.hasUnfinishedJobs) jobs.show();
}

document.addEventListener("visibilitychange", refresh);
setInterval(refresh, REFRESH_MS);
showReadiness();
jobs.show();
showSelectedJob();
