"""Python client of the sharecap video captioning service.

from sharecap_client import Client

with Client("http://localhost:8000") as client:
    print(client.caption("clip.mp4").wait().caption)
"""

from sharecap_client.api import AsyncClient, AsyncSubmittedJob
from sharecap_client.blocking import Client, SubmittedJob
from sharecap_client.errors import ApiError, JobCancelled, ServiceUnreachable, SharecapError
from sharecap_client.models import Job, JobStatus, JobSummary
from sharecap_client.webhooks import verify_webhook

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncSubmittedJob",
    "Client",
    "Job",
    "JobCancelled",
    "JobStatus",
    "JobSummary",
    "ServiceUnreachable",
    "SharecapError",
    "SubmittedJob",
    "verify_webhook",
]
