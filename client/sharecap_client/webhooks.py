"""Checks that a webhook comes from the service, by the rules of Standard Webhooks (https://www.standardwebhooks.com)."""

import hmac
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping

from pydantic import ValidationError

from sharecap_client.errors import InvalidWebhook
from sharecap_client.models import WebhookNotice

SECRET_PREFIX = "whsec_"
VERSION = "v1"
TOLERANCE_S = 300.0
"""How far the webhook's time may differ from this machine's clock. It bounds how long a captured request is valid."""


def verify_webhook(
    body: bytes, headers: Mapping[str, str], secret: str, *, tolerance_s: float = TOLERANCE_S
) -> WebhookNotice:
    """Return the content of a webhook that is signed with `secret` (`whsec_…`).

    `body` must be the bytes of the request as they were received. `secret` may contain several secrets, separated by
    spaces, while they are being replaced. Raises InvalidWebhook.
    """
    values = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, sent_at, signatures = (values[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise InvalidWebhook(f"the header {error.args[0]} is missing") from None
    if not sent_at.isdecimal() or abs(time.time() - int(sent_at)) > tolerance_s:
        raise InvalidWebhook("the webhook is too old, or this machine's clock is wrong")
    signed = b".".join((message_id.encode(), sent_at.encode(), body))
    expected = [f"{VERSION},{_signature(signed, each)}" for each in secret.split()]
    if not any(hmac.compare_digest(one.encode(), each.encode()) for one in signatures.split() for each in expected):
        raise InvalidWebhook("the signature does not match: the webhook was not signed with this secret")
    try:
        return WebhookNotice.model_validate_json(body)
    except ValidationError as error:
        raise InvalidWebhook(f"the body is not that of a webhook: {error.errors()[0]['msg']}") from None


def _signature(signed: bytes, secret: str) -> str:
    return b64encode(hmac.digest(b64decode(secret.removeprefix(SECRET_PREFIX)), signed, "sha256")).decode()
