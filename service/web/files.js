// Video files that the user chooses or drops, also in folders, and those that can be played from this machine.

import { VIDEO_SUFFIXES } from "./contract.js";

const localFiles = new Map(); // job id -> File; until the page is closed
const paths = new WeakMap(); // File -> its path in the folder that was dropped

/** What the browser's dialog offers: browsers do not know that every accepted ending belongs to a video. */
export const ACCEPT = ["video/*", ...VIDEO_SUFFIXES].join();

export const rememberFile = (jobId, file) => localFiles.set(jobId, file);

/** Return the file that was sent for this job, or undefined after the page was reloaded. */
export const fileOf = (jobId) => localFiles.get(jobId);

/** Return the file's name, with its folders if it was chosen or dropped in a folder. */
export const pathOf = (file) => paths.get(file) ?? (file.webkitRelativePath || file.name);

/** Split the files of a folder into `videos` and `others`, by name. */
export function sortOut(files) {
  const sorted = files.toSorted((a, b) => pathOf(a).localeCompare(pathOf(b), undefined, { numeric: true }));
  const { videos = [], others = [] } = Object.groupBy(sorted, (file) => (isVideo(file) ? "videos" : "others"));
  return { videos, others };
}

function isVideo({ type, name }) {
  return type.startsWith("video/") || VIDEO_SUFFIXES.some((suffix) => name.toLowerCase().endsWith(suffix));
}

/** Return `videos` and `others` of a drop. A file that was dropped by itself is a video, whatever its name. */
export async function droppedFiles({ items, files }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const [inFolders, single] = [[], []];
  if (!entries.some(({ isDirectory }) => isDirectory)) return { videos: [...files], others: [] };
  for (const entry of entries) (entry.isDirectory ? inFolders : single).push(...(await filesOf(entry)));
  const { videos, others } = sortOut(inFolders);
  return { videos: [...single, ...videos], others };
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    paths.set(file, entry.fullPath.slice(1));
    return [file];
  }
  const reader = entry.createReader();
  const entries = [];
  for (let more = await read(reader); more.length; more = await read(reader)) entries.push(...more);
  return (await Promise.all(entries.map(filesOf))).flat();
}

/** Return the next entries of a folder; a browser returns at most a hundred at a time. */
const read = (reader) => new Promise((resolve, reject) => reader.readEntries(resolve, reject));
