// The keyframe cards, and the links between them and the frame numbers in captions.

import { fromTemplate } from "./dom.js";
import { clock } from "./format.js";

const MENTION = /\b(?:frame|keyframe|image|picture)s?\s+#?(\d{1,5})\b/gi;

export class Frames {
  /** `onSeek` receives the time of a card's image when it is clicked. */
  constructor(list, images, pathOf, onSeek) {
    this.list = list;
    this.images = images;
    this.pathOf = pathOf;
    this.onSeek = onSeek;
    this.byIndex = new Map(); // keyframe -> {index, item, text, timeS, shot}
    this.current = null;
  }

  get size() {
    return this.byIndex.size;
  }

  get lastS() {
    return Math.max(...[...this.byIndex.values()].map(({ timeS }) => timeS));
  }

  get = (index) => this.byIndex.get(index);

  /** Create the card of a keyframe. Captions count frames from 1. */
  add(index, timeS, shot) {
    const item = fromTemplate("frame-template").firstElementChild;
    item.querySelector("b").textContent = `Frame ${index + 1}`;
    item.querySelector("time").textContent = clock(timeS);
    const seek = item.querySelector(".seek");
    seek.setAttribute("aria-label", `Go to frame ${index + 1} at ${clock(timeS)}`);
    seek.onclick = () => this.onSeek(timeS);
    this.images.show(item.querySelector("img"), this.pathOf(index));
    this.list.append(item);
    const frame = { index, item, text: item.querySelector(".text"), timeS, shot };
    this.byIndex.set(index, frame);
    return frame;
  }

  /** Return the last keyframe at or before this time, undefined before the first one. */
  inForceAt(timeS) {
    let latest;
    for (const frame of this.byIndex.values()) {
      if (frame.timeS <= timeS && (!latest || frame.timeS >= latest.timeS)) latest = frame;
    }
    return latest;
  }

  /** Mark the card whose differential caption is in force. */
  highlight(frame) {
    if (this.current === frame) return;
    this.current?.item.removeAttribute("aria-current");
    frame?.item.setAttribute("aria-current", "true");
    this.current = frame;
  }

  dimOutside(startS, endS) {
    for (const { item, timeS } of this.byIndex.values()) {
      item.classList.toggle("outside", timeS < startS || timeS > endS);
    }
  }

  /** Turn the frame numbers in a finished text into links to the cards, and link the cards back. */
  link(target) {
    const text = target.textContent;
    const parts = [];
    let end = 0;
    for (const match of text.matchAll(MENTION)) {
      const frame = this.get(Number(match[1]) - 1);
      if (!frame || frame.text === target) continue;
      parts.push(text.slice(end, match.index), this.mentionOf(frame, match[0]));
      end = match.index + match[0].length;
    }
    if (parts.length) target.replaceChildren(...parts, text.slice(end));
  }

  mentionOf(frame, words) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "mention";
    button.textContent = words;
    button.onclick = () => reveal(frame.item);
    const back = frame.item.querySelector(".mention");
    back.hidden = false;
    back.onclick = () => reveal(button);
    return button;
  }
}

function reveal(target) {
  target.scrollIntoView({ block: "center" });
  target.focus({ preventScroll: true });
}
