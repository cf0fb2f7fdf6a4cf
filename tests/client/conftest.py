"""The gateway's fixtures: the command is tried against a real one."""

from tests.service.conftest import gateway, serve, worker

__all__ = ["gateway", "serve", "worker"]
