// The player of a job's video: a local file, the address of a URL job, or the copy that the service keeps.

import { apiKey, request, sleep } from "./api.js";
import { ACCEPT, fileOf, rememberFile } from "./files.js";
import { TimeLine } from "./timeline.js";

const MIN_TOKEN_AGE_MS = 60_000; // an error this soon after the token was made has another cause
const MAX_TRIES = 3; // a rate limit may refuse the video; the player does not say so
const RETRY_MS = 1500;

export class Player {
  /** `onTime` receives the time that is shown; `parts` are the job's elements, `part` what the time line selects. */
  constructor(parts, job, images, { onTime, onSelecting, onSelect }) {
    this.parts = parts;
    this.job = job;
    this.onTime = onTime;
    this.tries = 1;
    this.closing = new AbortController();
    this.video = parts.player.querySelector("video");
    this.cues = this.video.addTextTrack("captions", "Captions");
    this.cues.mode = "hidden";
    this.timeLine = new TimeLine(parts.timeline, images, {
      onSeek: (seconds) => this.seek(seconds), onSelecting, onSelect });
    this.video.ontimeupdate = this.video.onseeking = () => this.show(this.video.currentTime);
    this.video.onerror = () => this.recover();
    const fileInput = parts["open-file"].querySelector("input");
    fileInput.accept = ACCEPT;
    fileInput.onchange = () => this.openFile(fileInput.files[0]);
    parts.player.hidden = false;
    this.load();
  }

  async load() {
    const { id, source, options } = this.job;
    const file = fileOf(id);
    if (file) {
      this.objectUrl = URL.createObjectURL(file);
      this.play(this.objectUrl, "metadata");
    } else if (options.keep_video) {
      const token = apiKey() && (await request("POST", `captions/${id}/token`).catch(() => null));
      this.tokenMadeAt = token ? Date.now() : undefined;
      this.play(`captions/${id}/video${token ? `?token=${token.token}` : ""}`, "metadata");
    } else if (/^https?:/.test(source?.url ?? "")) {
      this.play(source.url, "none"); // nothing is requested from another site until the user plays the video
    } else {
      this.hideVideo("The service has not kept this video.");
    }
  }

  play(url, preload) {
    this.video.preload = preload;
    this.video.src = url;
    this.video.hidden = false;
    this.parts["open-file"].hidden = true;
    this.parts["player-note"].textContent = "";
  }

  /** Load the video that the service keeps again: with a new token if the old one may have expired. */
  async recover() {
    const { signal } = this.closing;
    if (Date.now() - this.tokenMadeAt > MIN_TOKEN_AGE_MS) this.tries = 1;
    else if (!this.job.options.keep_video || fileOf(this.job.id) || this.tries === MAX_TRIES) {
      this.hideVideo("This browser cannot play the video.");
      return;
    } else {
      await sleep(RETRY_MS * this.tries, signal);
      this.tries += 1;
    }
    if (signal.aborted) return;
    const seconds = this.video.currentTime;
    await this.load();
    if (seconds > 0) this.video.currentTime = seconds;
  }

  hideVideo(note) {
    this.video.hidden = true;
    this.parts["player-note"].textContent = note;
    this.parts["open-file"].hidden = false;
  }

  /** Play a file that the user opens again after the page was reloaded. */
  openFile(file) {
    const expected = this.job.source?.bytes;
    if (!file) return;
    if (expected && file.size !== expected) {
      this.parts["player-note"].textContent = "This is another file than the one that was captioned.";
      return;
    }
    rememberFile(this.job.id, file);
    this.load();
  }

  close() {
    this.closing.abort();
    this.timeLine.close();
    this.video.removeAttribute("src");
    this.video.load();
    if (this.objectUrl) URL.revokeObjectURL(this.objectUrl);
  }

  seek(seconds) {
    if (!this.video.hidden) this.video.currentTime = seconds;
    this.show(seconds);
  }

  show(seconds) {
    this.timeLine.showTime(seconds);
    this.onTime(seconds);
  }

  /** Offer the differential captions, {timeS, text}, as subtitles; each lasts until the next one. */
  setCues(captions) {
    for (const cue of [...(this.cues.cues ?? [])]) this.cues.removeCue(cue);
    captions.forEach(({ timeS, text }, index) => {
      const endS = captions[index + 1]?.timeS ?? Math.max(this.timeLine.durationS, timeS + 1);
      if (endS > timeS) this.cues.addCue(new VTTCue(timeS, endS, text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")));
    });
  }
}
