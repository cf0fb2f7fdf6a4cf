"""The gateway and scripted worker fixtures of the service tests."""

from tests.service.conftest import serve, worker

__all__ = ["serve", "worker"]
