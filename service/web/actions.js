// The buttons of a job: cancel it, delete it, copy its link or caption, download its captions.

import { request } from "./api.js";
import { showProblem, showWait } from "./dom.js";
import { copyOnClick, saveAs } from "./download.js";
import { FORMATS, fileName } from "./formats.js";

export class Actions {
  /** `view` is the job's JobView; `onDelete` is called after the job is deleted. */
  constructor({ root, parts, job, closing }, onDelete) {
    this.root = root;
    this.job = job;
    this.signal = closing.signal;
    parts.cancel.onclick = () => this.send("POST", "/cancel");
    parts.delete.onclick = async () => {
      const confirmed = confirm("Delete this job with its captions and keyframes?");
      if (confirmed && await this.send("DELETE", "")) onDelete();
    };
    copyOnClick(parts.copy, () => parts.caption.textContent);
    copyOnClick(parts.link, () => location.href);
    for (const [suffix, format] of Object.entries(FORMATS)) {
      if (!format.timed || job.kind !== "recaption") parts.downloads.append(this.downloadButton(suffix, format));
    }
  }

  downloadButton(suffix, { label, type, write }) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.setAttribute("aria-label", `Download as ${label}`);
    button.onclick = async () => {
      const job = await this.send("GET", "");
      if (job) saveAs(fileName(job, suffix), type, write(job));
    };
    return button;
  }

  /** Send a request about this job. Returns the answer, true if it is empty, undefined after an error. */
  async send(method, suffix) {
    const { signal } = this;
    try {
      const onWait = (problem) => showWait(this.root, problem);
      const answer = await request(method, `captions/${this.job.id}${suffix}`, { signal, onWait });
      showProblem(this.root, null);
      return answer ?? true;
    } catch (problem) {
      if (!signal.aborted) showProblem(this.root, problem);
      return undefined;
    }
  }
}
