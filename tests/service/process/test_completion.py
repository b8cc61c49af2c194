"""What is opened in a thread is closed, whoever goes away meanwhile."""

import asyncio
import threading

import pytest

from tapline.service.process.completion import opened


class Thing:
    def __init__(self):
        self.is_closed = False

    def close(self):
        self.is_closed = True


def test_it_is_closed_after_the_block():
    thing = Thing()

    async def main():
        async with opened(asyncio.to_thread(lambda: thing)) as found:
            assert found is thing
            assert not thing.is_closed

    asyncio.run(main())
    assert thing.is_closed


def test_it_is_closed_where_the_one_who_asked_was_cancelled_before_it_was_open():
    thing, may_open = Thing(), threading.Event()

    def opening():
        assert may_open.wait(10)
        return thing

    async def user():
        async with opened(asyncio.to_thread(opening)):
            pytest.fail("it was cancelled")

    async def main():
        task = asyncio.create_task(user())
        await asyncio.sleep(0)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, may_open.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert thing.is_closed


def test_what_cannot_be_opened_is_told():
    def opening():
        raise FileNotFoundError("not there")

    async def main():
        async with opened(asyncio.to_thread(opening)):
            pytest.fail("it did not open")

    with pytest.raises(FileNotFoundError, match="not there"):
        asyncio.run(main())
