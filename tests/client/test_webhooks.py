"""The client accepts what the service signs, and nothing else."""

import base64
import secrets
import time

import pytest
from pydantic import SecretStr
from sharecap_client import verify_webhook
from sharecap_client.errors import InvalidWebhook

from service.upkeep.webhook_sender import WebhookSender

SECRETS = [f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}" for _ in range(3)]
BODY = (
    '{"type":"job.completed","timestamp":"2026-01-01T00:00:00Z","data":{"id":"cap_1","kind":"video",'
    '"status":"completed","caption":"Ein Stern ✨","created_at":"2026-01-01T00:00:00Z",'
    '"links":{"self":"","events":""}}}'
)


def signed(*used: str, body: str = BODY) -> dict[str, str]:
    return WebhookSender(SecretStr(" ".join(used)), frozenset())._headers("msg_cap_1", body)


def test_a_signed_webhook_is_accepted() -> None:
    notice = verify_webhook(BODY.encode(), signed(SECRETS[0]), SECRETS[0])
    assert (notice.type, notice.data.caption) == ("job.completed", "Ein Stern ✨")


def test_secrets_can_be_replaced() -> None:
    assert verify_webhook(BODY.encode(), signed(*SECRETS[:2]), SECRETS[1])
    assert verify_webhook(BODY.encode(), signed(SECRETS[1]), " ".join(SECRETS[:2]))


@pytest.mark.parametrize(
    ("body", "changes", "reason"),
    [
        (BODY.replace("cap_1", "cap_2"), {}, "does not match"),
        (BODY, {"webhook-id": "msg_cap_2"}, "does not match"),
        (BODY, {"webhook-signature": "v1,AAAA ü"}, "does not match"),
        (BODY, {"webhook-timestamp": str(int(time.time()) - 301)}, "too old"),
        (BODY, {"webhook-timestamp": "soon"}, "too old"),
    ],
)
def test_changed_webhooks_are_refused(body: str, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidWebhook, match=reason):
        verify_webhook(body.encode(), signed(SECRETS[0]) | changes, SECRETS[0])


def test_another_secret_a_missing_header_and_another_body_are_refused() -> None:
    with pytest.raises(InvalidWebhook, match="does not match"):
        verify_webhook(BODY.encode(), signed(SECRETS[0]), SECRETS[2])
    with pytest.raises(InvalidWebhook, match="webhook-id is missing"):
        verify_webhook(BODY.encode(), {}, SECRETS[0])
    with pytest.raises(InvalidWebhook, match="not that of a webhook"):
        verify_webhook(b"[]", signed(SECRETS[0], body="[]"), SECRETS[0])
