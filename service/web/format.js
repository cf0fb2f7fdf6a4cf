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

/** The job's name in titles and in the job list. The service gives lists and jobs the same `title`. */
export const jobName = (job) => job.title ?? "A video";

export function tokenCounts(usage) {
  const [prompt, image, generated] = [usage.prompt_tokens, usage.image_tokens, usage.completion_tokens]
    .map((count) => count.toLocaleString());
  return `${prompt} prompt tokens, ${image} of them for images, ${generated} generated`;
}
