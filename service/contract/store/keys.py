"""Every Redis key of the service. No other module spells a key or a key prefix.

Jobs, events, leases (`store.py`, `leases.py`):

    sharecap:job:{id}              hash    record (JSON), kind, status, owner, parent (of a clip: the video job), queue,
                                           cancel, epoch, holder, until, strikes, stalls, deadline, bytes (of the record
                                           and the events), counted (bytes that `sharecap:stored` includes)
    sharecap:events:{id}           stream  ids 1-0, 2-0, …; fields type, data (JSON), at (ms)
    sharecap:jobs                  zset    all job ids by creation time (ms)
    sharecap:jobs:{owner}          zset    job ids of one API key by creation time (ms)
    sharecap:clips:{id}            zset    ids of the clips of a video job by creation time (ms)
    sharecap:texts                 zset    ids of recaptions and clips by creation time (ms)
    sharecap:stored:{owner}        string  bytes that the jobs of one API key occupy in Redis
    sharecap:leases                zset    ids of leased jobs by the end of their lease (ms)
    sharecap:queued                zset    ids of queued jobs by the time of their latest wake-up (ms)
    sharecap:alive                 hash    seen: time (ms) of a reaper's latest look; back: time at which the latest
                                           outage was over

Turns (`turns.py`); the owner is '' for jobs without a key:

    sharecap:line:{queue}:{owner}  zset    ids of jobs that were never claimed by creation time (ms)
    sharecap:turns:{queue}         zset    owners of such jobs by the time of their latest turn (ms)

Workers (`worker_cards.py`):

    sharecap:workers               set     ids of workers that were alive recently
    sharecap:worker:{id}           string  a live worker's card (JSON), with a time to live

API keys and rate limits (`service/access`):

    sharecap:keys                  zset    ids of all API keys ever created, by creation time (s)
    sharecap:key:{id}              string  the API key's entry (JSON)
    sharecap:spent:{key}:{bucket}  string  bucket `requests`, `bytes` or `jobs`: time (ms) at which it is full again
    sharecap:unfinished:{key}      zset    ids of the API key's unfinished jobs by the time they were accepted (ms)
    sharecap:token:{sha256}        string  a short-lived token: the job that it can read, and the API key that made it
    sharecap:streams:{key}         zset    ids of its open event streams by the time at which each entry expires (ms)

Intake and upkeep (`service/intake/idempotency.py`, `service/upkeep`):

    sharecap:idempotency:{owner}:{sha256 of the Idempotency-Key}
                                   hash    fingerprint, job, removed ('1' after the job was removed)
    sharecap:webhooks              zset    ids of jobs with a `webhook_url` by the time of their next check (ms)
    sharecap:webhooks:tries        hash    number of delivery tries by job id
    sharecap:swept:{task}          string  task `expired` or `orphans`: a gateway ran it recently; with a time to live

RQ's own keys, `rq:*`, hold the wake-ups (`wakeups.py`).
"""

ALL_KEYS = ("sharecap:*", "rq:*")
"""Patterns of all keys, for permissions in Redis."""
JOB_PREFIX = "sharecap:job:"
JOBS = "sharecap:jobs"
TEXTS = "sharecap:texts"
STORED_PREFIX = "sharecap:stored:"
LINE_PREFIX = "sharecap:line:"
TURNS_PREFIX = "sharecap:turns:"
LEASES = "sharecap:leases"
QUEUED = "sharecap:queued"
ALIVE = "sharecap:alive"
WORKERS = "sharecap:workers"
API_KEYS = "sharecap:keys"
WEBHOOKS = "sharecap:webhooks"
WEBHOOK_TRIES = "sharecap:webhooks:tries"


def job_key(job_id: str) -> str:
    return f"{JOB_PREFIX}{job_id}"


def owned_key(owner: str) -> str:
    return f"{JOBS}:{owner}"


def clips_key(job_id: str) -> str:
    return f"sharecap:clips:{job_id}"


def stored_key(owner: str) -> str:
    return f"{STORED_PREFIX}{owner}"


def line_key(queue: str, owner: str) -> str:
    return f"{LINE_PREFIX}{queue}:{owner}"


def turns_key(queue: str) -> str:
    return f"{TURNS_PREFIX}{queue}"


def events_key(job_id: str) -> str:
    return f"sharecap:events:{job_id}"


def worker_key(worker_id: str) -> str:
    return f"sharecap:worker:{worker_id}"


def api_key_key(key_id: str) -> str:
    return f"sharecap:key:{key_id}"


def spent_key(key_id: str, bucket: str) -> str:
    return f"sharecap:spent:{key_id}:{bucket}"


def unfinished_key(key_id: str) -> str:
    return f"sharecap:unfinished:{key_id}"


def token_key(sha256: str) -> str:
    return f"sharecap:token:{sha256}"


def streams_key(key_id: str) -> str:
    return f"sharecap:streams:{key_id}"


def idempotency_key(owner: str | None, sha256: str | None) -> str:
    return f"sharecap:idempotency:{owner or ''}:{sha256}"


def swept_key(task: str) -> str:
    return f"sharecap:swept:{task}"
