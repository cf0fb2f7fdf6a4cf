// Values that the page shares with the service. tests/service/web/test_contract.py compares them with the Python ones.

export const FINAL_STATUSES = new Set(["completed", "failed", "cancelled"]); // also the types of the final events
export const JOB_ID = /^cap_[0-9a-f]{32}$/;
export const HEARTBEAT_MS = 15_000;
export const RETRY_MS = 2000;
export const PAGE_SIZE = 20;
export const MAX_PAGE_SIZE = 100;

/** The endings of files that the service accepts. It looks at the content; these select the videos of a folder. */
export const VIDEO_SUFFIXES = [
  ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".divx", ".flv", ".f4v", ".gif", ".webp",
  ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".m2v", ".vob", ".wmv", ".asf", ".ogv", ".ogg", ".apng",
  ".h264", ".264", ".h265", ".265", ".hevc",
];
