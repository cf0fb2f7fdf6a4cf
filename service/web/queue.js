// The queue of files: sends one after the other and shows how each of them fares.

import { Problem, request, retryWhenLimited, sleep, upload } from "./api.js";
import { FINAL_STATUSES, MAX_PAGE_SIZE } from "./contract.js";
import { element, fromTemplate } from "./dom.js";
import { saveAs } from "./download.js";
import { rememberFile } from "./files.js";
import { capitalised } from "./format.js";

const POLL_MS = 3000;

/** One file of the queue, with its row in the list. */
class Entry {
  constructor(file, options, onRetry) {
    this.file = file;
    this.options = options;
    this.onRetry = onRetry;
    this.job = null;
    this.row = fromTemplate("queue-template").firstElementChild;
    this.name = this.row.querySelector(".name");
    this.bar = this.row.querySelector("progress");
    this.button = this.row.querySelector("button");
    this.name.textContent = file.webkitRelativePath || file.name;
    this.bar.setAttribute("aria-label", `Upload of ${file.name}`);
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
    const onWait = (seconds) => this.say(`The service accepts no more at the moment, next try in ${seconds} s`);
    return retryWhenLimited(() => upload("captions", form, onProgress, signal), signal, onWait);
  }

  accept(job) {
    const link = document.createElement("a");
    link.href = `#${job.id}`;
    link.textContent = this.name.textContent;
    this.name.replaceChildren(link);
    this.bar.hidden = true;
    this.offer("");
    rememberFile(job.id, this.file);
    this.show(job);
  }

  show(job) {
    this.job = job;
    this.say(capitalised(job.status), job.status === "failed");
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
    const byId = new Map(jobs.map((job) => [job.id, job]));
    for (const entry of this.entries.filter(({ job, ended }) => job && !ended)) {
      const job = byId.get(entry.job.id) ?? (await this.load(entry.job.id));
      entry.show(job);
      if (job.status === "failed") entry.say((await this.load(job.id)).error?.detail ?? "Failed", true);
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
    for (const { job } of this.entries.filter(({ job }) => job?.status === "completed")) {
      const load = () => request("GET", `captions/${job.id}`);
      lines.push(JSON.stringify(await retryWhenLimited(load, new AbortController().signal)));
    }
    saveAs("captions.jsonl", "application/jsonl", `${lines.join("\n")}\n`);
  }
}
