// The queue of files: sends one after the other and shows the progress of each.

import { Problem, request, retryWhenLimited, sleep, upload } from "./api.js";
import { FINAL_STATUSES, MAX_PAGE_SIZE } from "./contract.js";
import { element, fromTemplate, showProblem } from "./dom.js";
import { saveAs } from "./download.js";
import { pathOf, rememberFile } from "./files.js";
import { capitalised, fractionDone, percent } from "./format.js";

const POLL_MS = 2000;
const MAX_ASKED = 4; // jobs whose progress is requested at a time, to stay far below rate limits
const FOREVER = { maxTries: Infinity, maxWaitS: Infinity };

/** One file of the queue, with its row in the list. */
class Entry {
  constructor(file, options, onRetry) {
    this.file = file;
    this.options = options;
    this.onRetry = onRetry;
    this.job = null;
    this.askedAt = 0;
    this.row = fromTemplate("queue-template").firstElementChild;
    this.name = this.row.querySelector(".name");
    this.bar = this.row.querySelector("progress");
    this.button = this.row.querySelector("button");
    this.name.textContent = pathOf(file);
    this.bar.setAttribute("aria-label", `Progress of ${file.name}`);
    this.wait();
  }

  get ended() {
    return this.failed || FINAL_STATUSES.has(this.job?.status);
  }

  wait() {
    this.failed = false;
    this.stopping = new AbortController();
    this.bar.hidden = false;
    this.say("Waiting");
    this.offer("Remove", () => {
      this.stopping.abort();
      this.fail(new Problem("Removed"));
    });
  }

  say(text, isError = false) {
    const line = this.row.querySelector(".about");
    line.classList.toggle("error", isError);
    if (isError) line.setAttribute("role", "alert"); // nothing else: a screen reader need not read every percentage
    else line.removeAttribute("role");
    if (line.textContent !== text) line.textContent = text;
  }

  offer(label, action) {
    this.button.hidden = !label;
    this.button.textContent = label;
    this.button.setAttribute("aria-label", `${label} ${this.file.name}`);
    this.button.onclick = action;
  }

  /** Send the file and return its job. Throws Problem. */
  async send() {
    const { signal } = this.stopping;
    this.offer("Stop", () => this.stopping.abort());
    const form = new FormData();
    for (const [name, value] of Object.entries(this.options)) form.set(name, value);
    form.set("file", this.file); // last, so that the service knows the options before it reads the video
    const onProgress = (fraction) => {
      this.bar.value = fraction;
      this.say(fraction < 1 ? `Uploading, ${Math.floor(100 * fraction)} %` : "Checking the video");
    };
    const onWait = ({ message, retryAfterS }) => this.say(`${message} Next try in ${retryAfterS} s.`);
    return retryWhenLimited(() => upload("captions", form, onProgress, signal), signal, { onWait, ...FOREVER });
  }

  accept(job) {
    const link = document.createElement("a");
    link.href = `#${job.id}`;
    link.textContent = this.name.textContent;
    this.name.replaceChildren(link);
    this.bar.value = 0;
    this.offer("");
    rememberFile(job.id, this.file);
    this.show(job);
  }

  show(job) {
    this.job = job;
    this.bar.hidden = this.ended;
    if (job.status === "failed") this.say(job.error?.detail ?? "Failed", true);
    else this.say(job.status === "running" ? this.progress(job) : capitalised(job.status));
  }

  /** Show in the bar how much of a running job is done, and return it as a text. A list has no keyframes. */
  progress(job) {
    const { keyframes = [], differentials = [] } = job;
    if (!differentials.length) return "Captioning";
    const lastS = Math.max(...keyframes.map(({ time_s: timeS }) => timeS));
    const counts = { captioned: differentials.length, selected: keyframes.length, lastS };
    this.bar.value = Math.max(this.bar.value, fractionDone(job, counts));
    return `Captioning, ${percent(this.bar.value)}`;
  }

  fail(problem) {
    this.failed = true;
    this.bar.hidden = true;
    this.say(problem.message, true);
    this.offer("Retry", () => {
      this.wait();
      this.onRetry();
    });
  }
}

export class Queue {
  /** `onAccept` receives each new job, `onUnauthorized` the problem if the service needs another API key. */
  constructor(onAccept, onUnauthorized) {
    this.onAccept = onAccept;
    this.onUnauthorized = onUnauthorized;
    this.entries = [];
    this.sending = false;
    this.polling = false;
    element("clear-queue").onclick = () => this.clear();
    element("download-all").onclick = () => this.download();
  }

  add(files, options) {
    for (const file of files) {
      const entry = new Entry(file, options, () => this.send());
      this.entries.push(entry);
      element("queue-rows").append(entry.row);
    }
    element("queue").hidden = false;
    this.send();
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    for (let next = this.nextEntry(); next; next = this.nextEntry()) await this.sendOne(next);
    this.sending = false;
    this.showButtons();
  }

  nextEntry() {
    return this.entries.find(({ job, failed }) => !job && !failed);
  }

  async sendOne(entry) {
    try {
      const job = await entry.send();
      entry.accept(job);
      this.onAccept(job);
      this.poll();
    } catch (problem) {
      if (problem.status === 401) this.onUnauthorized(problem);
      entry.fail(problem instanceof Problem ? problem : new Problem("The upload was stopped."));
    }
  }

  /** Show the status of the jobs until all have ended. */
  async poll() {
    if (this.polling) return;
    this.polling = true;
    while (this.entries.some(({ job, ended }) => job && !ended)) {
      await sleep(POLL_MS, new AbortController().signal);
      await this.refresh().catch(() => {}); // the next round tries again
    }
    this.polling = false;
    this.showButtons();
  }

  async refresh() {
    const { jobs } = await request("GET", `captions?kind=video&limit=${MAX_PAGE_SIZE}`);
    const listed = new Map(jobs.map((job) => [job.id, job]));
    const unknown = []; // the list does not tell the progress of a running job, nor why one failed
    for (const entry of this.entries.filter(({ job, ended }) => job && !ended)) {
      const job = listed.get(entry.job.id);
      if (["queued", "completed", "cancelled"].includes(job?.status)) entry.show(job);
      else unknown.push(entry);
    }
    unknown.sort((a, b) => a.askedAt - b.askedAt);
    for (const entry of unknown.slice(0, MAX_ASKED)) {
      entry.askedAt = Date.now();
      entry.show(await this.load(entry.job.id));
    }
    this.showButtons();
  }

  /** Return the job; one that was deleted in the meantime counts as cancelled. */
  async load(id) {
    try {
      return await request("GET", `captions/${id}`);
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      return { id, status: "cancelled" };
    }
  }

  showButtons() {
    element("download-all").hidden = !this.entries.some(({ job }) => job?.status === "completed");
    element("clear-queue").hidden = !this.entries.some(({ ended }) => ended);
  }

  /** Remove the rows of all files that are done. */
  clear() {
    for (const entry of this.entries.filter(({ ended }) => ended)) entry.row.remove();
    this.entries = this.entries.filter(({ ended }) => !ended);
    element("queue").hidden = this.entries.length === 0;
    this.showButtons();
  }

  /** Save the captions of all completed jobs, one JSON object a line. */
  async download() {
    const lines = [];
    showProblem(element("queue"), null);
    try {
      for (const { job } of this.entries.filter(({ job }) => job?.status === "completed")) {
        lines.push(JSON.stringify(await request("GET", `captions/${job.id}`)));
      }
      saveAs("captions.jsonl", "application/jsonl", `${lines.join("\n")}\n`);
    } catch (problem) {
      showProblem(element("queue"), problem);
    }
  }
}
