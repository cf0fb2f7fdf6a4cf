// One job on the page: what its events say, as they come. Whatever a model or a client wrote is put in as text only.

import { apiKey, follow, picture, request } from "./api.js";

const ENDED = new Set(["completed", "failed", "cancelled"]);

export function fromTemplate(id) {
  return document.getElementById(id).content.cloneNode(true);
}

/** Show a problem in the `.error` line of `place`; none takes it away. */
export function tellProblem(place, problem) {
  const line = place.querySelector(".error");
  line.hidden = !problem;
  line.textContent = problem?.message ?? "";
}

/** Seconds as 0:07.50, 12:00.00 or 1:02:03.00. */
export function clock(seconds) {
  const hundredths = Math.round(seconds * 100);
  const [hours, minutes] = [Math.floor(hundredths / 360_000), Math.floor(hundredths / 6000) % 60];
  const rest = ((hundredths % 6000) / 100).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** What a list and a title call a job. */
export function nameOf(job) {
  if (job.kind === "recaption") return job.options?.prompt ?? "A prompt written out";
  if (job.kind === "clip") return job.options ? partOf(job.options) : "A part of a video";
  return job.source?.filename ?? job.source?.url ?? "A video";
}

const partOf = ({ start_s, end_s }) => `${clock(start_s)} to ${clock(end_s)}`;

export class JobView {
  /** `changed` is called when the job ends, `gone` when it is deleted. */
  constructor(root, id, changed, gone) {
    this.root = root;
    this.id = id;
    this.changed = changed;
    this.gone = gone;
    this.stop = new AbortController();
    this.frames = new Map(); // keyframe -> {item, text, timeS}
    this.pictures = [];
    this.told = new Set();
    this.complete = false;
  }

  async show() {
    let job;
    try {
      job = await request("GET", `captions/${this.id}`);
    } catch (problem) {
      if (!this.stop.signal.aborted) this.root.replaceChildren(line(problem.message));
      return;
    }
    if (this.stop.signal.aborted) return;
    this.build(job);
    try {
      for await (const { type, data } of follow(this.id, this.stop.signal)) await this.take(type, data);
    } catch (problem) {
      tellProblem(this.root, problem);
    }
  }

  close() {
    this.stop.abort();
    this.seen?.disconnect();
    for (const url of this.pictures) URL.revokeObjectURL(url);
  }

  build(job) {
    this.root.replaceChildren(fromTemplate("job-template"));
    this.parts = {};
    for (const part of this.root.querySelectorAll("[data-part]")) this.parts[part.dataset.part] = part;
    this.job = job;
    this.parts.title.textContent = nameOf(job);
    this.parts.frames.hidden = job.kind !== "video";
    this.parts.cancel.onclick = () => this.ask("POST", "/cancel");
    this.parts.delete.onclick = async () => {
      if (confirm("Delete this job, its captions and its keyframes?") && await this.ask("DELETE", "")) this.gone();
    };
    this.parts.copy.onclick = () => navigator.clipboard.writeText(this.parts.caption.textContent);
    this.parts.copy.hidden = !navigator.clipboard;
    this.buildClip(job);
    this.state(job.status);
  }

  async ask(method, what) {
    try {
      await request(method, `captions/${this.id}${what}`);
      return true;
    } catch (problem) {
      tellProblem(this.root, problem);
      return false;
    }
  }

  // -- events

  take(type, data) {
    switch (type) {
      case "queued": return this.say("Waiting for a worker");
      case "started": return this.started(data.attempt);
      case "video": return this.video(data);
      case "keyframes": return this.keyframes(data);
      case "delta": return this.delta(data);
      case "differential": return this.differential(data);
      case "caption": return this.caption(data.text);
      case "gap": return this.readAgain();
      case "interrupted": return this.say("The connection broke; trying again");
      case "completed": case "failed": case "cancelled": return this.end(type, data);
    }
  }

  started(attempt) {
    this.state("running");
    this.say(attempt > 1 ? `Begun again, attempt ${attempt}` : "Begun");
    for (const place of this.root.querySelectorAll(".writing")) this.write(place, "");
  }

  video({ duration_s, width, height, fps, interval_s }) {
    const rate = `${Number(fps.toFixed(2))} frames a second`;
    this.parts.about.textContent = `${width} × ${height}, ${clock(duration_s)}, ${rate}, looked at every ${interval_s} s`;
    this.length(duration_s);
    this.say("Looking for keyframes");
  }

  keyframes({ keyframes, complete }) {
    for (const { index, time_s } of keyframes) this.frame(index, time_s);
    this.complete ||= complete;
    this.progress();
  }

  delta({ of, keyframe, text }) {
    const place = of === "caption" ? this.parts.caption : this.frame(keyframe).text;
    if (of === "caption") this.parts.result.hidden = false;
    if (!place.classList.contains("writing")) this.write(place, "", true);
    place.append(text);
  }

  differential({ keyframe, time_s, text }) {
    const frame = this.frame(keyframe, time_s);
    this.write(frame.text, text);
    this.told.add(keyframe);
    this.parts.clip.hidden = this.job.kind !== "video";
    this.progress();
  }

  caption(text) {
    this.parts.result.hidden = false;
    this.write(this.parts.caption, text);
  }

  end(status, { usage, error }) {
    this.state(status);
    const words = { completed: "Completed", failed: "Failed", cancelled: "Cancelled" };
    const tokens = usage && `${usage.prompt_tokens.toLocaleString()} tokens read, ` +
      `${usage.image_tokens.toLocaleString()} of them of images, ${usage.completion_tokens.toLocaleString()} written`;
    this.say(tokens ? `${words[status]}: ${tokens}` : words[status]);
    if (error) tellProblem(this.root, { message: `${error.detail} (${error.code})` });
    this.changed();
  }

  /** Some events are no longer kept: take what the job says. */
  async readAgain() {
    const job = await request("GET", `captions/${this.id}`);
    this.keyframes({ keyframes: job.keyframes, complete: ENDED.has(job.status) });
    for (const differential of job.differentials) this.differential(differential);
    if (job.caption !== null) this.caption(job.caption);
  }

  // -- what is seen

  state(status) {
    this.parts.cancel.hidden = ENDED.has(status);
    this.parts.delete.hidden = !ENDED.has(status);
    this.parts.progress.hidden = ENDED.has(status);
  }

  say(words) {
    this.parts.status.textContent = words;
  }

  write(place, text, writing = false) {
    place.textContent = text;
    place.classList.toggle("writing", writing);
  }

  progress() {
    const found = `${this.frames.size} ${this.frames.size === 1 ? "keyframe" : "keyframes"}${this.complete ? "" : " so far"}`;
    this.say(this.told.size ? `${this.told.size} of ${found} captioned` : found);
    if (!this.complete) return;
    this.parts.progress.max = this.frames.size + 1; // the caption of the whole comes last
    this.parts.progress.value = this.told.size;
  }

  /** Return what shows keyframe `index`, made when it is first named. */
  frame(index, timeS = 0) {
    if (!this.frames.has(index)) {
      const item = fromTemplate("frame-template").firstElementChild;
      item.querySelector("time").textContent = clock(timeS);
      const image = item.querySelector("img");
      image.alt = `Keyframe at ${clock(timeS)}`;
      this.load(image, `captions/${this.id}/keyframes/${index}.jpg`);
      this.parts.list.append(item);
      this.frames.set(index, { item, text: item.querySelector(".text"), timeS });
      this.length(timeS);
    }
    return this.frames.get(index);
  }

  /** Load a picture when it comes into view. */
  load(image, path) {
    if (!apiKey()) {
      image.loading = "lazy";
      image.src = path;
      return;
    }
    this.seen ??= new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.seen.unobserve(target);
        this.loadWithKey(target);
      }
    }, { rootMargin: "200px" });
    image.dataset.path = path;
    this.seen.observe(image);
  }

  async loadWithKey(image) {
    try {
      const url = URL.createObjectURL(await picture(image.dataset.path, this.stop.signal));
      this.pictures.push(url);
      image.src = url;
    } catch {
      // its place stays empty, with the time beside it
    }
  }

  // -- a part of the video

  buildClip(job) {
    const form = this.parts.clip;
    const { from, to } = form.elements;
    this.toEnd = true;
    this.seconds = 0;
    this.length(job.source?.duration_s || 0.1);
    form.oninput = ({ target }) => {
      if (target === to) this.toEnd = false;
      if (from.valueAsNumber >= to.valueAsNumber) {
        if (target === from) to.value = from.valueAsNumber + 0.1;
        else from.value = to.valueAsNumber - 0.1;
      }
      this.showPart();
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      this.captionPart({ start_s: from.valueAsNumber, end_s: to.valueAsNumber });
    };
  }

  /** The video is at least so long. */
  length(seconds) {
    const { from, to } = this.parts.clip.elements;
    if (seconds <= this.seconds) return;
    this.seconds = seconds;
    from.max = to.max = Math.ceil(seconds * 10) / 10;
    if (this.toEnd) to.value = to.max;
    this.showPart();
  }

  showPart() {
    const { from, to, "from-time": begins, "to-time": ends } = this.parts.clip.elements;
    begins.value = clock(from.valueAsNumber);
    ends.value = clock(to.valueAsNumber);
    for (const { item, timeS } of this.frames.values()) {
      item.classList.toggle("outside", timeS < from.valueAsNumber || timeS > to.valueAsNumber);
    }
  }

  async captionPart(part) {
    const form = this.parts.clip;
    const button = form.querySelector("button");
    tellProblem(form, null);
    button.disabled = true;
    try {
      const clip = await request("POST", `captions/${this.id}/clips`, part, { Prefer: "wait=0" });
      const article = fromTemplate("clip-template").firstElementChild;
      article.querySelector("h4").textContent = partOf(part);
      this.parts.clips.prepend(article);
      await this.followClip(clip.id, article.querySelector(".text"));
    } catch (problem) {
      tellProblem(form, problem);
    } finally {
      button.disabled = false;
    }
  }

  async followClip(id, place) {
    this.write(place, "", true);
    for await (const { type, data } of follow(id, this.stop.signal)) {
      if (type === "started") this.write(place, "", true);
      if (type === "delta") place.append(data.text);
      if (type === "caption") this.write(place, data.text);
      if (type === "failed") this.write(place, data.error.detail);
      if (type === "cancelled") this.write(place, "Cancelled");
    }
    this.changed();
  }
}

function line(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  return paragraph;
}
