"""Who may read, cancel and delete a job: only the API key that created it.

A job created without a key belongs to nobody. It is accessible while the service is open, and to no key afterwards.
"""

import re

from service.access.api_keys import ApiKey
from service.contract.errors import NotFound
from service.contract.jobs import JOB_ID_PATTERN, JobState
from service.contract.store.store import Store
from service.job_states import JobStates

_JOB_ID = re.compile(JOB_ID_PATTERN)


def owner_of(key: ApiKey | None) -> str | None:
    """Return the owner that is recorded in jobs created with this key."""
    return key.id if key else None


async def check_job_access(store: Store, key: ApiKey | None, job_id: str) -> None:
    """Check that the caller may access the job.

    Raises NotFound if the job does not exist or belongs to another key; the answer is the same in both cases.
    """
    owner = await store.owner(job_id) if _JOB_ID.fullmatch(job_id) else None
    if owner is None or owner != (owner_of(key) or ""):
        raise _not_found()


async def load_job(states: JobStates, key: ApiKey | None, job_id: str) -> JobState:
    """Return the job's current state if the caller may access the job. Raises NotFound like `check_job_access`."""
    await check_job_access(states.store, key, job_id)
    job = await states.job(job_id)
    if job is None:
        raise _not_found()
    return job


def _not_found() -> NotFound:
    return NotFound("This job does not exist.")
