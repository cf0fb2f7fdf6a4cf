// Values that the page shares with the service. tests/service/web/test_contract.py compares them with the Python ones.

export const FINAL_STATUSES = new Set(["completed", "failed", "cancelled"]); // also the types of the final events
export const JOB_ID = /^cap_[0-9a-f]{32}$/;
export const HEARTBEAT_MS = 15_000;
export const RETRY_MS = 2000;
export const PAGE_SIZE = 20;
export const MAX_PAGE_SIZE = 100;
