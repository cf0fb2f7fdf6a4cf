"""Background tasks of the gateway: retention and webhooks."""
