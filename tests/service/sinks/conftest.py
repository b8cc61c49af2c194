"""Tests here may be coroutines; and servers that webhooks are posted to."""

import asyncio
import inspect

import pytest

from tests.service.sinks.hook import Hook


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def serve():
    """Starts servers, which are stopped at the end."""
    started = []

    def start(context=None):
        started.append(Hook(context))
        return started[-1]

    yield start
    for hook in started:
        hook.stop()
