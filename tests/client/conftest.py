"""The fixtures of the gateway: the client is tested with a real one."""

from tests.service.conftest import gateway, serve, worker

__all__ = ["gateway", "serve", "worker"]
