// Video files that the user chooses or drops, also in folders, and those that can be played from this machine.

const VIDEO_NAME = /\.(mp4|m4v|mov|mkv|webm|avi|ts|mts|m2ts|mpe?g|flv|wmv|asf|ogv|3gp|gif)$/i;
const localFiles = new Map(); // job id -> File; until the page is closed

export const isVideo = (file) => file.type.startsWith("video/") || VIDEO_NAME.test(file.name);

export const rememberFile = (jobId, file) => localFiles.set(jobId, file);

/** Return the file that was sent for this job, or undefined after the page was reloaded. */
export const fileOf = (jobId) => localFiles.get(jobId);

/** Return all files of a drop, including those in dropped folders. */
export async function droppedFiles({ items, files }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some(({ isDirectory }) => isDirectory)) return [...files];
  return (await Promise.all(entries.map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const entries = [];
  for (let more = await read(reader); more.length; more = await read(reader)) entries.push(...more);
  return (await Promise.all(entries.map(filesOf))).flat();
}

/** Return the next entries of a folder; a browser returns at most a hundred at a time. */
const read = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
