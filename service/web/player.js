// The player of a job's video: a local file, the address of a URL job, or the copy that the service keeps.

import { apiKey, request } from "./api.js";
import { fileOf, rememberFile } from "./files.js";
import { TimeLine } from "./timeline.js";

const MIN_TOKEN_AGE_MS = 60_000; // an error this soon after the token was made has another cause

export class Player {
  /** `onTime` receives the time that is shown; `parts` are the job's elements, `part` what the time line selects. */
  constructor(parts, job, images, { onTime, onSelecting, onSelect }) {
    this.parts = parts;
    this.job = job;
    this.onTime = onTime;
    this.video = parts.player.querySelector("video");
    this.cues = this.video.addTextTrack("captions", "Captions");
    this.cues.mode = "hidden";
    this.timeLine = new TimeLine(parts.timeline, images, {
      onSeek: (seconds) => this.seek(seconds), onSelecting, onSelect });
    this.video.ontimeupdate = this.video.onseeking = () => this.show(this.video.currentTime);
    this.video.onerror = () => this.recover();
    parts["open-file"].querySelector("input").onchange = ({ target }) => this.openFile(target.files[0]);
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
      this.hideVideo("The service does not keep videos unless it is asked to.");
    }
  }

  play(url, preload) {
    this.video.preload = preload;
    this.video.src = url;
    this.video.hidden = false;
    this.parts["open-file"].hidden = true;
    this.parts["player-note"].textContent = "";
  }

  /** Continue with a new token if the old one has expired. */
  async recover() {
    if (!(Date.now() - this.tokenMadeAt > MIN_TOKEN_AGE_MS)) {
      this.hideVideo("This browser cannot play the video.");
      return;
    }
    const seconds = this.video.currentTime;
    await this.load();
    this.video.currentTime = seconds;
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
