// Times and names as the page shows them.

/** Format seconds as 0:07.50, 12:00.00 or 1:02:03.00. */
export function clock(seconds) {
  const hundredths = Math.round(seconds * 100);
  const [hours, minutes] = [Math.floor(hundredths / 360_000), Math.floor(hundredths / 6000) % 60];
  const rest = ((hundredths % 6000) / 100).toFixed(2).padStart(5, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

export const capitalised = (word) => word[0].toUpperCase() + word.slice(1);

export const range = ({ start_s, end_s }) => `${clock(start_s)} to ${clock(end_s)}`;

/** Return the first names of a list, and how many more there are. */
export function listed(names, limit = 3) {
  const more = names.length - limit;
  return names.slice(0, limit).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

/**
 * Return how much of a video job is done, 0 to 1: `captioned` of the `selected` keyframes, then the caption of the
 * whole video. Until `complete`, keyframes were selected up to `lastS` only.
 */
export function fractionDone(job, { captioned, selected, lastS, complete }) {
  const { start_s: startS, end_s: endS } = job.options;
  const durationS = job.source?.duration_s ?? Infinity;
  const length = Math.min(endS ?? Infinity, durationS) - (startS ?? 0);
  const covered = complete ? 1 : Math.min(1, Math.max(0, (lastS - (startS ?? 0)) / length));
  return (covered * captioned) / (selected + 1);
}

export const percent = (fraction) => `${Math.floor(100 * fraction)} %`;

/** The job's name in titles and in the job list. The service gives lists and jobs the same `title`. */
export const jobName = (job) => job.title ?? "A video";

export function tokenCounts(usage) {
  const [prompt, image, generated] = [usage.prompt_tokens, usage.image_tokens, usage.completion_tokens]
    .map((count) => count.toLocaleString());
  return `${prompt} prompt tokens, ${image} of them for images, ${generated} generated`;
}
