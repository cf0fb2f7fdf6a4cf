// Keyframe images: loaded once they scroll into view, with the API key, and again if the rate limit refuses them.

import { apiKey, fetchImage } from "./api.js";

export class Images {
  constructor(signal) {
    this.signal = signal;
    this.loaded = new Map(); // path -> promise of an object URL
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        this.observer.unobserve(target);
        this.loadWithKey(target);
      }
    }, { rootMargin: "200px" });
  }

  /** Show the image at `path` in an <img> element. */
  show(image, path) {
    if (!apiKey()) {
      image.loading = "lazy";
      image.src = path;
      return;
    }
    image.dataset.path = path;
    this.observer.observe(image);
  }

  async loadWithKey(image) {
    const { path } = image.dataset;
    if (!this.loaded.has(path)) {
      this.loaded.set(path, fetchImage(path, this.signal).then((blob) => URL.createObjectURL(blob)));
    }
    try {
      image.src = await this.loaded.get(path);
    } catch {
      this.loaded.delete(path); // the image stays empty; its time is still shown
    }
  }

  close() {
    this.observer.disconnect();
    for (const url of this.loaded.values()) url.then(URL.revokeObjectURL, () => {});
  }
}
