"""The REST API of a service in this process, asked under its own address: others are refused."""

from fastapi.testclient import TestClient

from tapline.service.api.app import create_app


def api_client(service, **options):
    """A client; use it as a context manager, so that the service runs."""
    return TestClient(create_app(service), "http://127.0.0.1", **options)
