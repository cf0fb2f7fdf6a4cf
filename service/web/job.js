// The view of one job: shows its events as they arrive.

import { Actions } from "./actions.js";
import { follow, request, sleep } from "./api.js";
import { ClipForm } from "./clip.js";
import { FINAL_STATUSES } from "./contract.js";
import { fromTemplate, paragraph, setFinishedText, setText, showProblem } from "./dom.js";
import { capitalised, clock, fractionDone, jobName, percent, tokenCounts } from "./format.js";
import { Frames } from "./frames.js";
import { Images } from "./images.js";
import { Player } from "./player.js";

const POSITION_EVERY_MS = 3000;

export class JobView {
  /**
   * `onChange` is called when the job starts or when it or one of its clips ends, `onDelete` after the job is deleted,
   * and `onUnauthorized` if the service needs another API key.
   */
  constructor(root, id, { onChange, onDelete, onUnauthorized }) {
    this.root = root;
    this.id = id;
    this.onChange = onChange;
    this.onDelete = onDelete;
    this.onUnauthorized = onUnauthorized;
    this.closing = new AbortController();
    this.images = new Images(this.closing.signal);
    this.captioned = new Set();
    this.allKeyframesSelected = false;
  }

  async show() {
    const { signal } = this.closing;
    const onWait = ({ message }) => this.root.replaceChildren(paragraph(message));
    try {
      this.build(await request("GET", `captions/${this.id}`, { signal, onWait }));
    } catch (problem) {
      if (!signal.aborted) this.showFailure(problem);
      return;
    }
    try {
      for await (const { type, data } of follow(this.id, signal)) await this.handle(type, data);
    } catch (problem) {
      showProblem(this.root, problem);
    }
  }

  /** Say why the job cannot be shown, and offer another try if that can help. */
  showFailure(problem) {
    this.root.replaceChildren(paragraph(problem.message));
    if (problem.status === 401) this.onUnauthorized(problem);
    if (problem.status === 401 || problem.status === 404) return;
    const button = document.createElement("button");
    button.textContent = "Try again";
    button.onclick = () => this.show();
    this.root.append(button);
  }

  close() {
    this.closing.abort();
    this.player?.close();
    this.images.close();
  }

  build(job) {
    this.root.replaceChildren(fromTemplate("job-template"));
    this.parts = {};
    for (const part of this.root.querySelectorAll("[data-part]")) this.parts[part.dataset.part] = part;
    this.job = job;
    this.showTitle(jobName(job));
    this.actions = new Actions(this, this.onDelete);
    this.frames = new Frames(this.parts.list, this.images, (index) => this.imagePath(index), (s) => this.player?.seek(s));
    if (job.kind === "video") this.buildVideo();
    if (job.kind === "recaption") this.parts.result.querySelector("h3").textContent = "Expanded prompt";
    this.parts.parent.hidden = !job.parent;
    if (job.parent) this.linkParent(job);
    this.showControls(job.status);
  }

  showTitle(title) {
    this.parts.title.textContent = title;
    document.title = `${title} · sharecap`;
  }

  /** Name the video that a clip is a part of. */
  async linkParent(job) {
    this.parts.parent.querySelector("a").href = `#${job.parent}`;
    const parent = await request("GET", `captions/${job.parent}`).catch(() => null);
    if (parent && !this.closing.signal.aborted) this.showTitle(`${jobName(job)} of ${jobName(parent)}`);
  }

  buildVideo() {
    const { signal } = this.closing;
    this.parts.frames.hidden = false;
    this.clipForm = new ClipForm(this.parts, this.id, signal, {
      onRange: (startS, endS) => this.showRange(startS, endS),
      onSeek: (seconds) => this.player.seek(seconds),
      onEnd: this.onChange,
    });
    this.player = new Player(this.parts, this.job, this.images, {
      onTime: (seconds) => this.showTime(seconds),
      onSelecting: (startS, endS) => this.clipForm.selectRange(startS, endS),
      onSelect: (startS, endS) => this.clipForm.submitRange(startS, endS),
    });
    this.extendTo(this.job.source?.duration_s || 0.1);
    this.clipForm.list().catch((problem) => signal.aborted || showProblem(this.root, problem));
  }

  // -- events

  handle(type, data) {
    if (type !== "interrupted") this.isQueued = type === "queued";
    if (FINAL_STATUSES.has(type)) return this.end(type, data);
    switch (type) {
      case "queued": return this.queued();
      case "started": return this.started(data.attempt);
      case "fetching": return this.fetching(data);
      case "video": return this.video(data);
      case "keyframes": return this.keyframes(data);
      case "delta": return this.delta(data);
      case "differential": return this.differential(data);
      case "caption": return this.caption(data);
      case "gap": return this.reload();
      case "interrupted": return this.showStatus("Connection lost, reconnecting");
    }
  }

  queued() {
    this.showStatus("Waiting for a worker");
    if (!FINAL_STATUSES.has(this.job.status)) this.showPosition();
  }

  /** Show the position in the queue until the job starts. */
  async showPosition() {
    const { signal } = this.closing;
    while (this.isQueued && !signal.aborted) {
      const job = await request("GET", `captions/${this.id}`, { signal }).catch(() => null); // the next round asks again
      const position = job?.queue_position;
      if (position && this.isQueued) this.showStatus(`Waiting, number ${position} in the queue`);
      await sleep(POSITION_EVERY_MS, signal);
    }
  }

  started(attempt) {
    this.showControls("running");
    if (!FINAL_STATUSES.has(this.job.status)) this.onChange();
    this.showStatus(attempt > 1 ? `Restarted, attempt ${attempt}` : "Started");
    for (const target of this.root.querySelectorAll(".card > .writing, .frame .writing")) setText(target, "");
  }

  fetching({ received_bytes: received, total_bytes: total }) {
    const amount = total ? `${Math.floor((100 * received) / total)} %` : `${Math.floor(received / 1e6)} MB`;
    this.showStatus(`Fetching the video, ${amount}`);
  }

  video({ duration_s, width, height, fps, interval_s }) {
    const format = `${width} × ${height}, ${clock(duration_s)}, ${Number(fps.toFixed(2))} frames per second`;
    this.parts.about.textContent = `${format}, sampled every ${interval_s} s`;
    this.job.source = { ...this.job.source, duration_s };
    this.extendTo(duration_s);
    this.showStatus("Looking for keyframes");
  }

  keyframes({ keyframes, complete }) {
    for (const { index, time_s, shot } of keyframes) this.frame(index, time_s, shot);
    this.allKeyframesSelected ||= complete;
    this.showProgress();
  }

  delta({ of, keyframe, text }) {
    const target = of === "caption" ? this.parts.caption : this.frame(keyframe).text;
    if (of === "caption" && this.parts.result.hidden) {
      this.parts.result.hidden = false;
      const { position } = this.parts.progress; // negative while unknown
      this.showStatus(position > 0 ? `${percent(position)}: writing the caption` : "Writing the caption");
    }
    if (!target.classList.contains("writing")) setText(target, "", true);
    target.append(text);
  }

  differential({ keyframe, time_s, text, finish_reason }) {
    const { text: target } = this.frame(keyframe, time_s);
    setFinishedText(target, text, finish_reason);
    this.frames.link(target);
    this.captioned.add(keyframe);
    this.parts.clip.hidden = this.job.kind !== "video";
    this.showProgress();
  }

  caption({ text, finish_reason }) {
    this.parts.result.hidden = false;
    setFinishedText(this.parts.caption, text, finish_reason);
    if (this.job.kind === "video") this.frames.link(this.parts.caption);
  }

  end(status, { usage, error }) {
    this.showControls(status);
    this.showStatus(usage ? `${capitalised(status)}: ${tokenCounts(usage)}` : capitalised(status));
    if (error) showProblem(this.root, { message: `${error.detail} (${error.code})` });
    this.showSubtitles();
    this.onChange();
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
    if (ended) this.parts.result.hidden &&= this.captioned.size === 0;
  }

  showStatus(text) {
    if (this.parts.status.textContent !== text) this.parts.status.textContent = text;
  }

  showProgress() {
    const [selected, captioned] = [this.frames.size, this.captioned.size];
    const keyframes = `${selected} ${selected === 1 ? "keyframe" : "keyframes"}`;
    const soFar = this.allKeyframesSelected ? "" : " so far";
    if (captioned === 0) {
      this.showStatus(`${keyframes}${soFar}`);
      return;
    }
    const lastS = this.frames.lastS;
    const done = fractionDone(this.job, { captioned, selected, lastS, complete: this.allKeyframesSelected });
    this.parts.progress.value = done;
    this.showStatus(`${percent(done)}: ${captioned} of ${keyframes}${soFar} captioned`);
  }

  imagePath(index) {
    // Not the `image` of the event: that path is absolute, and the page may be served below a prefix by a proxy.
    return `captions/${this.id}/keyframes/${index}.jpg`;
  }

  /** Return the elements of keyframe `index`, creating them on first use. */
  frame(index, timeS = 0, shot = 0) {
    if (!this.frames.get(index)) {
      const frame = this.frames.add(index, timeS, shot);
      this.player?.timeLine.add(frame, this.imagePath(index));
      this.extendTo(timeS);
    }
    return this.frames.get(index);
  }

  extendTo(seconds) {
    this.player?.timeLine.extendTo(seconds);
    this.clipForm?.extendTo(seconds);
  }

  showRange(startS, endS) {
    this.frames.dimOutside(startS, endS);
    this.player?.timeLine.showSelection(startS, endS);
  }

  /** Mark the differential caption that is in force at this time, and show it below the player. */
  showTime(seconds) {
    const frame = this.frames.inForceAt(seconds);
    this.frames.highlight(frame);
    this.player.timeLine.highlight(frame?.index);
    this.parts.now.textContent = frame?.text.textContent ?? "";
  }

  showSubtitles() {
    const frames = [...this.frames.byIndex.values()].sort((a, b) => a.timeS - b.timeS);
    this.player?.setCues(frames.map(({ timeS, text }) => ({ timeS, text: text.textContent })));
  }
}
