// The form that captions a part of a finished video, and the captions of the parts.

import { follow, request } from "./api.js";
import { fromTemplate, setFinishedText, setText, showProblem } from "./dom.js";
import { clock, range } from "./format.js";

const MIN_LENGTH_S = 0.1;

export class ClipForm {
  /** `onRange` receives the chosen start and end in seconds, `onEnd` is called when a clip's job ends. */
  constructor(form, clips, videoId, signal, onRange, onEnd) {
    this.form = form;
    this.clips = clips;
    this.videoId = videoId;
    this.signal = signal;
    this.onRange = onRange;
    this.onEnd = onEnd;
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

  async submit() {
    const { from, to } = this.form.elements;
    const options = { start_s: from.valueAsNumber, end_s: to.valueAsNumber };
    const button = this.form.querySelector("button");
    showProblem(this.form, null);
    button.disabled = true;
    try {
      const job = await request("POST", `captions/${this.videoId}/clips`, options, { Prefer: "wait=0" });
      const article = fromTemplate("clip-template").firstElementChild;
      article.querySelector("h4").textContent = range(options);
      this.clips.prepend(article);
      await this.showCaption(job.id, article.querySelector(".text"));
    } catch (problem) {
      showProblem(this.form, problem);
    } finally {
      button.disabled = false;
    }
  }

  async showCaption(jobId, target) {
    setText(target, "", true);
    for await (const { type, data } of follow(jobId, this.signal)) {
      if (type === "started") setText(target, "", true);
      if (type === "delta") target.append(data.text);
      if (type === "caption") setFinishedText(target, data.text, data.finish_reason);
      if (type === "failed") setText(target, data.error.detail);
      if (type === "cancelled") setText(target, "Cancelled");
    }
    this.onEnd();
  }
}
