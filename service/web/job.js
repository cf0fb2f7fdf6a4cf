// The view of one job: shows its events as they arrive.

import { apiKey, fetchImage, follow, request } from "./api.js";
import { ClipForm } from "./clip.js";
import { FINAL_STATUSES } from "./contract.js";
import { fromTemplate, paragraph, setFinishedText, setText, showProblem } from "./dom.js";
import { capitalised, clock, jobName } from "./format.js";

function tokenCounts(usage) {
  const [prompt, image, generated] = [usage.prompt_tokens, usage.image_tokens, usage.completion_tokens]
    .map((count) => count.toLocaleString());
  return `${prompt} prompt tokens, ${image} of them for images, ${generated} generated`;
}

export class JobView {
  /** `onEnd` is called when the job or one of its clips ends, `onDelete` after the job is deleted. */
  constructor(root, id, onEnd, onDelete) {
    this.root = root;
    this.id = id;
    this.onEnd = onEnd;
    this.onDelete = onDelete;
    this.closing = new AbortController();
    this.frames = new Map(); // keyframe -> {item, text, timeS}
    this.imageUrls = [];
    this.captioned = new Set();
    this.allKeyframesFound = false;
  }

  async show() {
    const { signal } = this.closing;
    let job;
    try {
      job = await request("GET", `captions/${this.id}`);
    } catch (problem) {
      if (!signal.aborted) this.root.replaceChildren(paragraph(problem.message));
      return;
    }
    if (signal.aborted) return;
    this.build(job);
    try {
      for await (const { type, data } of follow(this.id, signal)) await this.handle(type, data);
    } catch (problem) {
      showProblem(this.root, problem);
    }
  }

  close() {
    this.closing.abort();
    this.observer?.disconnect();
    for (const url of this.imageUrls) URL.revokeObjectURL(url);
  }

  build(job) {
    this.root.replaceChildren(fromTemplate("job-template"));
    this.parts = {};
    for (const part of this.root.querySelectorAll("[data-part]")) this.parts[part.dataset.part] = part;
    this.job = job;
    this.parts.title.textContent = jobName(job);
    this.parts.frames.hidden = job.kind !== "video";
    this.parts.cancel.onclick = () => this.send("POST", "/cancel");
    this.parts.delete.onclick = async () => {
      const confirmed = confirm("Delete this job with its captions and keyframes?");
      if (confirmed && await this.send("DELETE", "")) this.onDelete();
    };
    this.parts.copy.onclick = () => navigator.clipboard.writeText(this.parts.caption.textContent);
    this.parts.copy.hidden = !navigator.clipboard;
    const { clip, clips } = this.parts;
    const dimOthers = (startS, endS) => this.dimFramesOutside(startS, endS);
    this.clipForm = new ClipForm(clip, clips, this.id, this.closing.signal, dimOthers, this.onEnd);
    this.clipForm.extendTo(job.source?.duration_s || 0.1);
    this.showControls(job.status);
  }

  /** Send a request about this job; return whether it succeeded. */
  async send(method, suffix) {
    try {
      await request(method, `captions/${this.id}${suffix}`);
      return true;
    } catch (problem) {
      showProblem(this.root, problem);
      return false;
    }
  }

  // -- events

  handle(type, data) {
    if (FINAL_STATUSES.has(type)) return this.end(type, data);
    switch (type) {
      case "queued": return this.showStatus("Waiting for a worker");
      case "started": return this.started(data.attempt);
      case "video": return this.video(data);
      case "keyframes": return this.keyframes(data);
      case "delta": return this.delta(data);
      case "differential": return this.differential(data);
      case "caption": return this.caption(data);
      case "gap": return this.reload();
      case "interrupted": return this.showStatus("Connection lost, reconnecting");
    }
  }

  started(attempt) {
    this.showControls("running");
    this.showStatus(attempt > 1 ? `Restarted, attempt ${attempt}` : "Started");
    for (const target of this.root.querySelectorAll(".writing")) setText(target, "");
  }

  video({ duration_s, width, height, fps, interval_s }) {
    const format = `${width} × ${height}, ${clock(duration_s)}, ${Number(fps.toFixed(2))} frames per second`;
    this.parts.about.textContent = `${format}, sampled every ${interval_s} s`;
    this.clipForm.extendTo(duration_s);
    this.showStatus("Looking for keyframes");
  }

  keyframes({ keyframes, complete }) {
    for (const { index, time_s } of keyframes) this.frame(index, time_s);
    this.allKeyframesFound ||= complete;
    this.showProgress();
  }

  delta({ of, keyframe, text }) {
    const target = of === "caption" ? this.parts.caption : this.frame(keyframe).text;
    if (of === "caption") this.parts.result.hidden = false;
    if (!target.classList.contains("writing")) setText(target, "", true);
    target.append(text);
  }

  differential({ keyframe, time_s, text, finish_reason }) {
    const frame = this.frame(keyframe, time_s);
    setFinishedText(frame.text, text, finish_reason);
    this.captioned.add(keyframe);
    this.parts.clip.hidden = this.job.kind !== "video";
    this.showProgress();
  }

  caption({ text, finish_reason }) {
    this.parts.result.hidden = false;
    setFinishedText(this.parts.caption, text, finish_reason);
  }

  end(status, { usage, error }) {
    this.showControls(status);
    this.showStatus(usage ? `${capitalised(status)}: ${tokenCounts(usage)}` : capitalised(status));
    if (error) showProblem(this.root, { message: `${error.detail} (${error.code})` });
    this.onEnd();
  }

  /** Load the job's current state, because the stored stream lacks some events. */
  async reload() {
    const job = await request("GET", `captions/${this.id}`);
    this.keyframes({ keyframes: job.keyframes, complete: FINAL_STATUSES.has(job.status) });
    for (const differential of job.differentials) this.differential(differential);
    if (job.caption !== null) this.caption({ text: job.caption, finish_reason: job.finish_reason });
  }

  // -- display

  showControls(status) {
    const ended = FINAL_STATUSES.has(status);
    this.parts.cancel.hidden = ended;
    this.parts.delete.hidden = !ended;
    this.parts.progress.hidden = ended;
  }

  showStatus(text) {
    this.parts.status.textContent = text;
  }

  showProgress() {
    const [found, captioned] = [this.frames.size, this.captioned.size];
    const keyframes = `${found} ${found === 1 ? "keyframe" : "keyframes"}${this.allKeyframesFound ? "" : " so far"}`;
    this.showStatus(captioned ? `${captioned} of ${keyframes} captioned` : keyframes);
    if (!this.allKeyframesFound) return;
    this.parts.progress.max = found + 1; // the caption of the whole video follows the keyframes
    this.parts.progress.value = captioned;
  }

  /** Return the elements of keyframe `index`, creating them on first use. */
  frame(index, timeS = 0) {
    if (!this.frames.has(index)) {
      const item = fromTemplate("frame-template").firstElementChild;
      item.querySelector("time").textContent = clock(timeS);
      const image = item.querySelector("img");
      image.alt = `Keyframe at ${clock(timeS)}`;
      // Not the `image` of the event: that path is absolute, and the page may be served below a prefix by a proxy.
      this.loadImage(image, `captions/${this.id}/keyframes/${index}.jpg`);
      this.parts.list.append(item);
      this.frames.set(index, { item, text: item.querySelector(".text"), timeS });
      this.clipForm.extendTo(timeS);
    }
    return this.frames.get(index);
  }

  dimFramesOutside(startS, endS) {
    for (const { item, timeS } of this.frames.values()) {
      item.classList.toggle("outside", timeS < startS || timeS > endS);
    }
  }

  /** Load an image once it scrolls into view. */
  loadImage(image, path) {
    if (!apiKey()) {
      image.loading = "lazy";
      image.src = path;
      return;
    }
    this.observer ??= new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.observer.unobserve(target);
        this.loadImageWithKey(target);
      }
    }, { rootMargin: "200px" });
    image.dataset.path = path;
    this.observer.observe(image);
  }

  async loadImageWithKey(image) {
    try {
      const url = URL.createObjectURL(await fetchImage(image.dataset.path, this.closing.signal));
      this.imageUrls.push(url);
      image.src = url;
    } catch {
      // the image stays empty; its time is still shown
    }
  }
}
