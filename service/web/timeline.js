// The time line: keyframe thumbnails at their times, shot boundaries, the current time and the selected part.

import { clock } from "./format.js";

const DRAG_PX = 6;

export class TimeLine {
  /** `onSeek` receives a time, `onSelect` the start and end of a dragged part; `onSelecting` the same while dragging. */
  constructor(root, images, { onSeek, onSelecting, onSelect }) {
    this.root = root;
    this.images = images;
    this.onSeek = onSeek;
    this.onSelecting = onSelecting;
    this.onSelect = onSelect;
    this.durationS = 0;
    this.frames = []; // {timeS, shot, tick, thumb}
    this.thumbs = this.child("thumbs");
    this.track = this.child("track");
    this.selection = this.child("selection", this.track);
    this.playhead = this.child("playhead", this.track);
    this.selection.hidden = true;
    this.resizing = new ResizeObserver(() => this.arrange());
    this.resizing.observe(root);
    this.track.onpointerdown = (event) => this.press(event);
  }

  close() {
    this.resizing.disconnect();
  }

  child(name, parent = this.root) {
    const created = document.createElement("div");
    created.className = name;
    parent.append(created);
    return created;
  }

  extendTo(seconds) {
    if (seconds <= this.durationS) return;
    this.durationS = seconds;
    this.arrange();
  }

  add({ index, timeS, shot }, path) {
    const previous = this.frames.at(-1);
    const tick = this.child(previous && previous.shot !== shot ? "tick shot" : "tick", this.track);
    const thumb = document.createElement("button");
    thumb.type = "button";
    thumb.setAttribute("aria-label", `Frame ${index + 1} at ${clock(timeS)}`);
    thumb.title = `Frame ${index + 1}, ${clock(timeS)}`;
    thumb.onclick = () => this.onSeek(timeS);
    const image = document.createElement("img");
    image.alt = "";
    thumb.append(image);
    this.thumbs.append(thumb);
    this.images.show(image, path);
    this.frames.push({ index, timeS, shot, tick, thumb });
    this.extendTo(timeS);
    this.arrange();
  }

  /** Place everything before the next repaint. */
  arrange() {
    this.arranging ??= requestAnimationFrame(() => {
      this.arranging = undefined;
      const width = this.root.clientWidth;
      let free = 0; // the first pixel that no thumbnail covers; one that would cover another is left out
      for (const { timeS, tick, thumb } of this.frames) {
        const at = this.durationS ? timeS / this.durationS : 0;
        tick.style.left = `${100 * at}%`;
        thumb.hidden = false;
        const left = Math.min(at * width, Math.max(0, width - thumb.offsetWidth));
        thumb.hidden = left < free;
        thumb.style.left = `${left}px`;
        if (!thumb.hidden) free = left + thumb.offsetWidth;
      }
    });
  }

  // -- what is shown

  highlight(index) {
    for (const frame of this.frames) frame.thumb.classList.toggle("current", frame.index === index);
  }

  showTime(seconds) {
    this.playhead.style.left = `${this.percent(seconds)}%`;
  }

  showSelection(startS, endS) {
    this.selection.hidden = startS <= 0 && endS >= this.durationS;
    this.selection.style.left = `${this.percent(startS)}%`;
    this.selection.style.width = `${this.percent(endS) - this.percent(startS)}%`;
  }

  percent(seconds) {
    return this.durationS ? 100 * Math.min(1, Math.max(0, seconds / this.durationS)) : 0;
  }

  // -- the pointer

  timeAt(clientX) {
    const { left, width } = this.track.getBoundingClientRect();
    return Math.min(1, Math.max(0, (clientX - left) / width)) * this.durationS;
  }

  press(down) {
    if (down.button !== 0) return;
    down.preventDefault();
    this.track.setPointerCapture(down.pointerId);
    let dragged = false;
    const part = (event) => [down.clientX, event.clientX].sort((a, b) => a - b).map((x) => this.timeAt(x));
    this.track.onpointermove = (event) => {
      dragged ||= Math.abs(event.clientX - down.clientX) > DRAG_PX;
      if (dragged) this.onSelecting(...part(event));
    };
    this.track.onpointercancel = () => this.release();
    this.track.onpointerup = (event) => {
      this.release();
      if (dragged) this.onSelect(...part(event));
      else this.onSeek(this.timeAt(event.clientX));
    };
  }

  release() {
    this.track.onpointermove = this.track.onpointerup = this.track.onpointercancel = null;
  }
}
