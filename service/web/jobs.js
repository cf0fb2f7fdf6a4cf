// The list of recent jobs.

import { NEEDS_KEY, request } from "./api.js";
import { FINAL_STATUSES, MAX_PAGE_SIZE, PAGE_SIZE } from "./contract.js";
import { element, fromTemplate, showProblem, showWait } from "./dom.js";
import { capitalised, clock, jobName } from "./format.js";

export class JobList {
  /** `onUnauthorized` receives the problem if the service needs another API key. */
  constructor(onUnauthorized) {
    this.onUnauthorized = onUnauthorized;
    this.section = element("jobs").parentElement;
    this.cursor = null;
    this.hasUnfinishedJobs = false;
    this.loading = false;
    this.isStale = false;
    element("more-jobs").onclick = () => this.showMore();
  }

  /** Load the list again, with as many jobs as it shows. */
  async show() {
    this.isStale = true;
    while (this.isStale && !this.loading) {
      this.isStale = false;
      const limit = Math.min(Math.max(element("jobs").childElementCount, PAGE_SIZE), MAX_PAGE_SIZE);
      await this.load(`captions?limit=${limit}`, () => element("jobs").replaceChildren());
    }
  }

  async showMore() {
    await this.load(`captions?limit=${PAGE_SIZE}&cursor=${encodeURIComponent(this.cursor)}`);
    if (this.isStale) this.show();
  }

  /** Load one page of jobs and add it to the list. */
  async load(path, prepare = () => {}) {
    this.loading = true;
    element("more-jobs").disabled = true;
    try {
      const page = await request("GET", path, { onWait: (problem) => showWait(this.section, problem) });
      prepare();
      this.add(page);
      showProblem(this.section, null);
    } catch (problem) {
      element("no-jobs").hidden = true;
      if (problem.status === 401) this.onUnauthorized(problem);
      else showProblem(this.section, problem);
    } finally {
      this.loading = false;
      element("more-jobs").disabled = false;
    }
  }

  /** Show no jobs but what is missing. */
  showNeedsKey() {
    element("jobs").replaceChildren();
    element("more-jobs").hidden = element("no-jobs").hidden = true;
    showProblem(this.section, { message: NEEDS_KEY });
  }

  add({ jobs, cursor }) {
    const names = new Map(jobs.map((job) => [job.id, job.title]));
    for (const job of jobs) element("jobs").append(rowOf(job, names.get(job.parent)));
    this.hasUnfinishedJobs = jobs.some(({ status }) => !FINAL_STATUSES.has(status));
    this.cursor = cursor;
    element("more-jobs").hidden = !cursor;
    element("no-jobs").hidden = element("jobs").childElementCount > 0;
    this.markSelected();
  }

  markSelected() {
    for (const link of element("jobs").querySelectorAll("a")) {
      if (link.getAttribute("href") === location.hash) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}

/** `parentName` is the name of the video that a clip is a part of, if the list contains it. */
function rowOf(job, parentName) {
  const row = fromTemplate("row-template");
  const link = row.querySelector("a");
  link.href = `#${job.id}`;
  row.querySelector(".name").textContent = parentName ? `${jobName(job)} of ${parentName}` : jobName(job);
  const duration = job.source?.duration_s ? `${clock(job.source.duration_s)}, ` : "";
  const when = new Date(job.created_at).toLocaleString(undefined, { dateStyle: "short", timeStyle: "short" });
  row.querySelector(".about").textContent = capitalised(`${duration}${job.status}, ${when}`);
  return row;
}
