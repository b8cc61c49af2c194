"""How records get to an output: sent, tried again, spooled, dropped in order, and each accounted for."""

import asyncio
import contextlib
import time

import pytest
from prometheus_client import generate_latest

from tapline.service.metrics import Metrics
from tapline.service.sinks.delivery import Delivery
from tapline.service.sinks.disk_spool import DiskSpool
from tapline.service.sinks.output_queue import Pending
from tapline.service.sinks.output_url import EveOutput
from tapline.service.sinks.sender import AwayError
from tests.service.sinks.records import ToldSender, add_up, numbered, numbers, pending, sending, until


@pytest.fixture
def deliver(tmp_path):
    """Makes a delivery to a sender, with a spool where one is asked for."""
    with contextlib.ExitStack() as stack:

        def make(sender, *, spool=False, records=1000, metrics=None):
            output = EveOutput(shown="eve:x", name="x", path="x", queue_records=records)
            kept = DiskSpool(tmp_path / "spool", 1 << 20) if spool else None
            if kept is not None:
                stack.callback(kept.close)
            return Delivery(output, sender, metrics or Metrics(), kept)

        yield make


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("tapline.service.sinks.delivery.pause_seconds", lambda failures: 0.01)


async def test_records_arrive_in_batches_and_are_counted(deliver):
    sender, metrics = ToldSender(batch_records=4), Metrics()
    delivery = deliver(sender, metrics=metrics)
    for number in range(10):
        delivery.put(pending("flows", number))
    async with sending(delivery):
        await until(lambda: delivery.counts.written == 10)
    assert numbers(sender.lines) == list(range(10))
    assert max(map(len, sender.batches)) == 4
    assert sender.closed
    exposed = generate_latest(metrics.registry).decode()
    assert 'tapline_output_records_total{outcome="written",output="x"} 10.0' in exposed
    assert 'tapline_output_queue_records{output="x"} 0.0' in exposed
    assert 'tapline_output_up{output="x"} 1.0' in exposed


async def test_what_is_away_is_tried_again_and_said(deliver):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender)
    async with sending(delivery):
        delivery.put(pending("alerts", 1))
        await until(lambda: delivery.problem == "nobody there")
        assert add_up(delivery)
        sender.away = None
        await until(lambda: delivery.counts.written == 1)
        await until(lambda: delivery.problem is None)
    assert numbers(sender.lines) == [1]


async def test_while_it_is_away_flows_are_dropped_first_and_the_alert_arrives(deliver):
    sender = ToldSender(batch_records=100)
    sender.away = "nobody there"
    delivery = deliver(sender, records=10)
    async with sending(delivery):
        for number in range(4):
            delivery.put(pending("alerts", number))
            delivery.put(pending("flows", 100 + number))
        await until(lambda: delivery.problem is not None)
        for number in range(20):
            delivery.put(pending("traces", 200 + number))
        sender.away = None
        await until(lambda: delivery.queued == 0)
        assert "records are dropped" in delivery.problem
    assert numbers(sender.lines) == [0, 1, 2, 3, *range(214, 220)]
    assert delivery.counts.dropped_by == {"flows": 4, "traces": 14}
    assert add_up(delivery)


async def test_a_batch_on_its_way_counts_to_what_may_be_dropped(deliver):
    """A slow receiver that fails in the end: what it had is the oldest of all."""
    sender = ToldSender(batch_records=5)
    delivery = deliver(sender, records=5)
    async with sending(delivery):
        sender.gate.clear()
        for number in range(5):
            delivery.put(pending("flows", number))
        await until(sender.inside.is_set)
        for number in range(5, 10):
            delivery.put(pending("flows", number))
        sender.away = "too late"
        sender.gate.set()
        await until(lambda: delivery.problem is not None)
        sender.away = None
        await until(lambda: delivery.queued == 0)
    assert numbers(sender.lines)[-5:] == list(range(5, 10))
    assert add_up(delivery)


async def test_what_comes_while_it_is_away_goes_to_the_spool_and_arrives_after_a_restart(deliver):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender, spool=True, records=10)
    async with sending(delivery):
        delivery.put(pending("flows", 0))
        await until(lambda: delivery.spooled == 1)
        for number in range(1, 6):
            delivery.put(pending("flows", number))
        delivery.put(pending("alerts", 6))
    assert (delivery.counts.written, delivery.counts.dropped, delivery.spooled) == (0, 0, 7)
    assert add_up(delivery)
    later = ToldSender(batch_records=3)
    again = deliver(later, spool=True)
    assert again.counts.recovered == 7
    async with sending(again):
        await until(lambda: again.counts.written == 7)
    assert numbers(later.lines) == [6, 0, 1, 2, 3, 4, 5]
    assert add_up(again)


async def test_a_stop_with_a_dead_receiver_and_a_spool_takes_no_time(deliver):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender, spool=True)
    delivery.put(pending("flows", 0))
    started = time.monotonic()
    async with sending(delivery, stop_seconds=60):
        await until(lambda: delivery.problem is not None)
    assert time.monotonic() - started < 30
    assert delivery.spooled == 1


async def test_a_stop_drains_first(deliver):
    sender = ToldSender(batch_records=1)
    delivery = deliver(sender)
    async with sending(delivery):
        for number in range(50):
            delivery.put(pending("flows", number))
    assert numbers(sender.lines) == list(range(50))
    assert delivery.counts.written == 50


async def test_a_stop_without_a_spool_counts_what_is_lost(deliver):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender)
    delivery.put(pending("alerts", 0))
    async with sending(delivery, stop_seconds=0.2):
        await until(lambda: delivery.problem is not None)
    assert delivery.counts.dropped_by == {"alerts": 1}
    assert add_up(delivery)
    delivery.put(pending("alerts", 1))
    assert delivery.counts.dropped == 2


@pytest.mark.parametrize("spool", [True, False])
async def test_a_sender_that_hangs_does_not_hold_the_stop_up(deliver, spool):
    sender = ToldSender(batch_records=2)
    sender.gate.clear()
    delivery = deliver(sender, spool=spool)
    async with sending(delivery, stop_seconds=0.1):
        for number in range(5):
            delivery.put(pending("flows", number))
        await until(sender.inside.is_set)
    assert (delivery.spooled, delivery.counts.dropped) == ((5, 0) if spool else (0, 5))
    assert add_up(delivery)
    sender.gate.set()  # it comes back: nobody counts its batch once more
    await asyncio.to_thread(delivery._thread.join, 20)
    assert delivery.counts.written == 0
    assert add_up(delivery)


async def test_one_that_hangs_holds_up_no_other_and_not_the_event_loop(deliver):
    slow, quick = ToldSender(), ToldSender()
    slow.gate.clear()
    one, other = deliver(slow), deliver(quick)
    async with sending(one, other, stop_seconds=0.1):
        for number in range(100):
            one.put(pending("flows", number))
            other.put(pending("flows", number))
        await until(lambda: other.counts.written == 100)
        assert one.counts.written == 0
        slow.gate.set()
        await until(lambda: one.counts.written == 100)


async def test_records_that_will_never_be_taken_are_counted_and_cost_no_other(deliver):
    sender = ToldSender()
    sender.refuses = {numbered("flows", 3).line}
    delivery = deliver(sender)
    async with sending(delivery):
        for number in range(6):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.queued == 0)
    assert numbers(sender.lines) == [0, 1, 2, 4, 5]
    assert (delivery.counts.written, delivery.counts.failed) == (5, 1)


@pytest.mark.parametrize("spool", [True, False])
async def test_only_what_did_not_arrive_is_sent_again(deliver, spool):
    sender = ToldSender()
    tries = []

    def send(records):
        tries.append(numbers(record.line for record in records))
        if len(tries) == 1 or (spool and len(tries) == 2):  # the first try lets all of it go to the spool
            raise AwayError("in part", [records[1], records[3]] if len(tries) == 1 + spool else None)
        return ()

    sender.send = send
    delivery = deliver(sender, spool=spool)
    for number in range(5):
        delivery.put(pending("flows", number))
    async with sending(delivery):
        await until(lambda: delivery.counts.written == 5)
    assert tries[-2:] == [[0, 1, 2, 3, 4], [1, 3]]
    assert add_up(delivery)


async def test_a_fault_of_ours_costs_its_batch_and_not_the_part(deliver):
    sender = ToldSender(batch_records=2)
    right = sender.send

    def send(records):
        if numbered("flows", 0) in records:
            raise ZeroDivisionError
        return right(records)

    sender.send = send
    delivery = deliver(sender)
    for number in range(6):
        delivery.put(pending("flows", number))
    async with sending(delivery):
        await until(lambda: delivery.queued == 0)
    assert numbers(sender.lines) == [2, 3, 4, 5]
    assert (delivery.counts.written, delivery.counts.failed) == (4, 2)


@pytest.mark.parametrize("spool", [True, False])
async def test_a_record_that_cannot_be_made_costs_itself(deliver, spool):
    sender = ToldSender()
    sender.away = "nobody there" if spool else None
    delivery = deliver(sender, spool=spool)
    for number in range(3):
        delivery.put(pending("flows", number))
        delivery.put(Pending("flows", 10, lambda: 1 // 0))
    async with sending(delivery):
        await until(lambda: delivery.counts.failed == 3)
        sender.away = None
        await until(lambda: delivery.counts.written == 3)
    assert numbers(sender.lines) == [0, 1, 2]
    assert add_up(delivery)


async def test_a_slow_receiver_has_the_room_on_disk_too(deliver):
    sender = ToldSender(batch_records=1)
    sender.gate.clear()
    delivery = deliver(sender, spool=True, records=100)
    async with sending(delivery):
        delivery.put(pending("flows", 0))
        await until(sender.inside.is_set)
        for number in range(1, 91):
            delivery.put(pending("flows", number))
        sender.gate.set()
        await until(lambda: delivery.counts.written >= 2)
        for number in range(91, 150):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.counts.written == 150)
    assert numbers(sender.lines) == list(range(150))
    assert delivery.counts.dropped == 0


async def test_a_file_of_the_spool_that_is_gone_costs_itself(deliver, tmp_path):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender, spool=True)
    async with sending(delivery):
        delivery.put(pending("flows", 0))
        await until(lambda: delivery.spooled == 1)
        for path in (tmp_path / "spool").glob("flows-*"):
            path.unlink()
        delivery.put(pending("traces", 1))
        await until(lambda: delivery.spooled in (1, 2) and delivery.queued == 0)
        sender.away = None
        await until(lambda: delivery.counts.written == 1)
    assert numbers(sender.lines) == [1]
    assert delivery.counts.dropped_by == {"flows": 1}
    assert add_up(delivery)


async def test_a_record_that_suffered_on_disk_costs_itself(deliver, tmp_path):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender, spool=True)
    async with sending(delivery):
        for number in range(5):
            delivery.put(pending("flows", number))
        await until(lambda: delivery.spooled == 5)
    (path,) = (tmp_path / "spool").glob("flows-*")
    path.write_bytes(path.read_bytes().replace(b'"number":2', b"\0" * 10))
    sender.away = None
    again = deliver(sender, spool=True)
    async with sending(again):
        await until(lambda: again.spooled == 0)
    assert numbers(sender.lines) == [0, 1, 3, 4]
    assert (again.counts.recovered, again.counts.written, again.counts.failed) == (5, 4, 1)


async def test_the_other_side_may_ask_for_a_longer_pause_and_a_reopen_ends_it(deliver):
    sender = ToldSender()
    tries = []

    def send(records):
        tries.append(len(records))
        if len(tries) == 1:
            raise AwayError("busy", retry_after_seconds=10**6)
        return ()

    sender.send = send
    delivery = deliver(sender)
    async with sending(delivery):
        delivery.put(pending("flows", 0))
        await until(lambda: delivery.problem == "busy")
        await asyncio.sleep(0.1)
        assert len(tries) == 1
        delivery.reopen()
        await until(lambda: delivery.counts.written == 1)
    assert sender.reopened.is_set()


async def test_a_reopen_is_done_at_once_where_nothing_comes(deliver):
    sender = ToldSender()
    delivery = deliver(sender)
    async with sending(delivery):
        delivery.reopen()
        await until(sender.reopened.is_set)


async def test_a_spool_that_cannot_be_written_leaves_records_in_memory(deliver, tmp_path, monkeypatch):
    sender = ToldSender()
    sender.away = "nobody there"
    delivery = deliver(sender, spool=True)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("tapline.service.sinks.disk_spool.write_all", full)
        async with sending(delivery, stop_seconds=0.2):
            for number in range(5):
                delivery.put(pending("flows", number))
            await until(lambda: delivery.problem is not None)
            assert (delivery.queued, delivery.spooled) == (5, 0)
            sender.away = None
            await until(lambda: delivery.counts.written == 5)
    assert numbers(sender.lines) == list(range(5))
