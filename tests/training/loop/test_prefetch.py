"""Batches made ahead: in order, errors in their place, bounded, and no thread left behind."""

import threading

import pytest

from tapline.training.loop.prefetch import Prefetched

LIMIT_SECONDS = 30


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_come_in_order():
    with Prefetched(iter(range(100)), ahead=3) as items:
        assert list(items) == list(range(100))
    assert threads() == []


def test_items_are_made_while_the_consumer_is_busy():
    made = [threading.Event() for _ in range(3)]

    def make():
        for number, event in enumerate(made):
            event.set()
            yield number

    with Prefetched(make(), ahead=2) as items:
        assert next(iter(items)) == 0
        assert all(event.wait(LIMIT_SECONDS) for event in made)


def test_no_more_are_made_than_may_wait():
    made = []
    third = threading.Event()

    def make():
        for number in range(50):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    with Prefetched(make(), ahead=2):
        assert third.wait(LIMIT_SECONDS)
    assert len(made) == 3  # two wait, one is held; leaving ends the thread though nobody took any
    assert threads() == []


def test_an_error_comes_where_its_item_would_have():
    def make():
        yield 1
        raise ValueError("no more")

    with Prefetched(make()) as items:
        each = iter(items)
        assert next(each) == 1
        with pytest.raises(ValueError, match="no more"):
            next(each)
