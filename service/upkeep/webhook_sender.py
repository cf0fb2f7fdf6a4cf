"""One webhook request: its body, its signature, and sending it.

Requests follow Standard Webhooks: https://www.standardwebhooks.com
"""

import asyncio
from datetime import UTC, datetime

from pydantic import BaseModel, SecretStr
from standardwebhooks import Webhook

from service.contract.errors import UrlForbidden, UrlUnreachable
from service.contract.jobs import JobState
from service.contract.outbound import http
from service.contract.outbound.ssrf import HostAndPort, check_url
from service.presentation import Job, present_job

SEND_TIMEOUT_S = 15.0
"""From connecting to the response headers."""


class Notice(BaseModel):
    """The body of a webhook.

    `type`: `job.completed`, `job.failed` or `job.cancelled`. `timestamp`: when the job ended.
    """

    type: str
    timestamp: datetime | None
    data: Job


class WebhookSender:
    """Sends webhooks. Each request carries one signature per secret, so that secrets can be rotated."""

    def __init__(self, secrets: SecretStr, allowed_hosts: frozenset[HostAndPort]) -> None:
        self._hosts = allowed_hosts
        self._signers = [Webhook(secret) for secret in secrets.get_secret_value().split()]

    async def send(self, webhook_url: str, job: JobState) -> int | None:
        """Send the webhook once and return the receiver's HTTP status; None without a response."""
        notice = Notice(type=f"job.{job.status.value}", timestamp=job.finished_at, data=present_job(job))
        body = notice.model_dump_json()
        headers = self._headers(f"msg_{job.id}", body)
        try:
            url = check_url(webhook_url, self._hosts)
            async with asyncio.timeout(SEND_TIMEOUT_S):
                async with http.request("POST", url, self._hosts, data=body.encode(), headers=headers) as response:
                    return response.status
        except (UrlForbidden, UrlUnreachable, TimeoutError):
            return None

    def _headers(self, message_id: str, body: str) -> dict[str, str]:
        now = datetime.now(UTC)
        return {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signer.sign(message_id, now, body) for signer in self._signers),
        }
