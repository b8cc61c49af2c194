"""Records to send, senders that do as they are told, and waiting for what threads do."""

import asyncio
import contextlib
import threading
import time

import msgspec

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts.alert import Alert
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.sinks.output_queue import Pending, Record
from tapline.service.sinks.outputs import Outputs
from tapline.service.sinks.sender import AwayError
from tapline.service.traces.trace_verdict import TopFlow, TraceVerdict

FLOW = Flow(
    "CHhAvVGS1DHFjwGM9", 1_700_000_000_123_456, 2_900_000, "10.0.0.5", 49152, "192.0.2.7", 443, "tcp", 3, 4,
    [100, -200], b"", b"", 7, 9, 900, 5000, service="ssl", conn_state="SF", sensor="gate",
    server_name="www.example.org",
)  # fmt: skip
VERDICT = Verdict("TLS", "TLS", 0.98, False, [], "flow-protocols", "2", True, "TLS", False)
TRACE = TraceVerdict(
    "ws://sensor:27759", "originator", "10.0.0.5", 1_700_000_000_000_000, 1_700_000_600_000_000, 12, 0,
    Verdict("unknown", "mirai", 0.31, True, [], "intrusion", "3"),
    [TopFlow(FLOW.uid, "1:x=", FLOW.start_us, 5, "tcp", "10.0.0.5", 49152, "192.0.2.7", 443, 900, "TLS", 0.4, "a.org")],
    0.2, False,
)  # fmt: skip
ALERT = Alert(
    "01HFQ", 1_700_000_003_000_001, "tls-on-odd-port", "high", "flow", "TLS on port 8444", "flow-protocols", "2",
    source="ws://sensor:27759", sensor="gate", label="TLS", nearest="TLS", confidence=0.98, start_us=FLOW.start_us,
    end_us=FLOW.start_us + FLOW.duration_us, uid=FLOW.uid, community_id="1:x=", proto="tcp", orig_h="10.0.0.5",
    orig_p=49152, resp_h="192.0.2.7", resp_p=8444, suppressed=3, port_label="TLS",
)  # fmt: skip


def numbered(kind, number):
    """A record that is told by its number."""
    line = b'{"timestamp":"2026-01-01T00:00:00.000000+0000","event_type":"%b","number":%d}' % (kind.encode(), number)
    return Record(kind, line)


def pending(kind, number):
    return Pending.of(numbered(kind, number))


def numbers(lines):
    """The numbers of lines."""
    return [msgspec.json.decode(line)["number"] for line in lines]


class ToldSender:
    """Sends to a list; `away` holds reasons why it does not, `gate` holds it."""

    gather_seconds = 0

    def __init__(self, batch_records=10):
        self.batch_records = batch_records
        self.batch_bytes = 1 << 20
        self.lines = []
        self.batches = []
        self.away = None
        self.refuses = set()
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.reopened = threading.Event()
        self.closed = False
        self.probes = 0

    def send(self, records):
        self.inside.set()
        self.gate.wait(20)
        if self.away is not None:
            raise AwayError(self.away)
        self.batches.append(records)
        refused = [record for record in records if record.line in self.refuses]
        self.lines += [record.line for record in records if record not in refused]
        return refused

    def probe(self):
        self.gate.wait(20)
        self.probes += 1
        if self.away is not None:
            raise AwayError(self.away)

    def reopen(self):
        self.reopened.set()

    def close(self):
        self.closed = True


async def until(holds, seconds=20):
    """Wait until something holds that a thread brings about."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def sending(*deliveries, stop_seconds=10):
    """Deliveries at work."""
    supervisor = Supervisor(Metrics())
    parts = [supervisor.start(delivery.name, delivery.run) for delivery in deliveries]
    try:
        yield
    finally:
        await supervisor.stop(parts)
        await asyncio.gather(*(delivery.stop(stop_seconds) for delivery in deliveries))


@contextlib.asynccontextmanager
async def outputs_of(data_dir, *texts, stop_seconds=10):
    """The outputs of these texts at work."""
    outputs = Outputs(texts, data_dir, Metrics())
    async with sending(*outputs.deliveries, stop_seconds=stop_seconds):
        yield outputs


def add_up(delivery):
    """Whether every record is accounted for."""
    counts = delivery.counts
    ended = counts.written + counts.dropped + counts.failed
    assert counts.dropped == counts.dropped_by.total()
    return counts.received + counts.recovered == ended + delivery.queued + delivery.spooled
