// The form that captions a part of a video, and the captions of the parts, also of those captioned earlier.

import { follow, request } from "./api.js";
import { FINAL_STATUSES } from "./contract.js";
import { fromTemplate, setFinishedText, setText, showProblem, showWait } from "./dom.js";
import { capitalised, clock, range } from "./format.js";

const MIN_LENGTH_S = 0.1;

export class ClipForm {
  /**
   * `onRange` receives the chosen start and end in seconds, `onSeek` the start of a part that the user wants to see;
   * `onEnd` is called when a clip's job ends.
   */
  constructor(parts, videoId, signal, { onRange, onSeek, onEnd }) {
    const form = parts.clip;
    this.form = form;
    this.clips = parts.clips;
    this.more = parts["more-clips"];
    this.note = parts["player-note"];
    this.videoId = videoId;
    this.signal = signal;
    this.onRange = onRange;
    this.onSeek = onSeek;
    this.onEnd = onEnd;
    this.targets = new Map(); // id of a clip's job -> element of its text
    this.durationS = 0;
    this.endsWithVideo = true; // until the user moves the end
    form.oninput = ({ target }) => this.adjust(target);
    form.onsubmit = (event) => {
      event.preventDefault();
      this.submit();
    };
  }

  /** Extend the sliders to `seconds`; the length of the video becomes known step by step. */
  extendTo(seconds) {
    const { from, to } = this.form.elements;
    if (seconds <= this.durationS) return;
    this.durationS = seconds;
    from.max = to.max = Math.ceil(seconds * 10) / 10;
    if (this.endsWithVideo) to.value = to.max;
    this.showRange();
  }

  /** Keep the end after the start when one of the sliders is moved past the other. */
  adjust(moved) {
    const { from, to } = this.form.elements;
    if (moved === to) this.endsWithVideo = false;
    if (from.valueAsNumber >= to.valueAsNumber) {
      if (moved === from) to.value = from.valueAsNumber + MIN_LENGTH_S;
      else from.value = to.valueAsNumber - MIN_LENGTH_S;
    }
    this.showRange();
  }

  showRange() {
    const { from, to, "from-time": fromTime, "to-time": toTime } = this.form.elements;
    fromTime.value = clock(from.valueAsNumber);
    toTime.value = clock(to.valueAsNumber);
    this.onRange(from.valueAsNumber, to.valueAsNumber);
  }

  /** Select a part on the time line, and caption it. */
  submitRange(startS, endS) {
    this.selectRange(startS, endS);
    if (this.form.hidden) {
      this.note.textContent = "A part can be captioned as soon as it has keyframe captions. Fast mode makes none.";
      return;
    }
    this.submit();
  }

  selectRange(startS, endS) {
    const { from, to } = this.form.elements;
    this.endsWithVideo = false;
    from.value = startS;
    to.value = endS;
    this.adjust(to);
  }

  async submit() {
    const { from, to } = this.form.elements;
    const options = { start_s: from.valueAsNumber, end_s: to.valueAsNumber };
    const button = this.form.querySelector("button");
    showProblem(this.form, null);
    button.disabled = true;
    try {
      const job = await request("POST", `captions/${this.videoId}/clips`, {
        values: options,
        headers: { Prefer: "wait=0" },
        signal: this.signal,
        onWait: (problem) => showWait(this.form, problem),
      });
      showProblem(this.form, null);
      this.clips.prepend(this.articleOf(job));
      await this.follow(job);
    } catch (problem) {
      if (!this.signal.aborted) showProblem(this.form, problem);
    } finally {
      button.disabled = false;
    }
  }

  // -- the parts that were captioned before

  /** Show the next page of parts, newest first. */
  async list(cursor = null) {
    const position = cursor ? `?cursor=${encodeURIComponent(cursor)}` : "";
    const page = await request("GET", `captions/${this.videoId}/clips${position}`, { signal: this.signal });
    if (this.signal.aborted) return;
    for (const job of page.clips) {
      if (this.targets.has(job.id)) continue; // created while the page was open
      this.clips.append(this.articleOf(job));
      if (FINAL_STATUSES.has(job.status)) this.showEnd(job);
      else this.follow(job);
    }
    this.form.hidden &&= page.clips.length === 0;
    this.more.hidden = !page.cursor;
    this.more.onclick = () => this.list(page.cursor).catch((problem) => showProblem(this.form, problem));
  }

  articleOf(job) {
    const article = fromTemplate("clip-template").firstElementChild;
    article.querySelector("h4").textContent = range(job.options);
    article.querySelector(".seek").onclick = () => this.onSeek(job.options.start_s);
    this.targets.set(job.id, article.querySelector(".text"));
    return article;
  }

  showEnd({ id, status, caption, finish_reason, error }) {
    const target = this.targets.get(id);
    if (caption !== null) setFinishedText(target, caption, finish_reason);
    else setText(target, error?.detail ?? capitalised(status));
  }

  async follow({ id }) {
    const target = this.targets.get(id);
    setText(target, "", true);
    for await (const { type, data } of follow(id, this.signal)) {
      if (type === "started") setText(target, "", true);
      if (type === "delta") target.append(data.text);
      if (type === "caption") setFinishedText(target, data.text, data.finish_reason);
      if (type === "failed") setText(target, data.error.detail);
      if (type === "cancelled") setText(target, "Cancelled");
    }
    this.onEnd();
  }
}
