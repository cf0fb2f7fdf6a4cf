"""The gateway and the scripted worker of the service's tests."""

from tests.service.conftest import serve, worker

__all__ = ["serve", "worker"]
