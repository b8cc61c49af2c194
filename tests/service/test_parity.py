"""Live, `zeek -r` and the built-in reader show the models the same bits: same flows, same tokens."""

import asyncio
import json
import os
import shutil
import socket
import subprocess

import numpy as np
import pytest

from tapline.models.encode import encode
from tapline.models.flow import Flow
from tapline.service.engines.loading import load_engine
from tapline.service.inference.batcher import Batcher
from tapline.service.inference.classifier import Classifier
from tapline.service.live.observer import Observers
from tapline.service.live.pipeline import LivePipeline
from tapline.service.live.sensors import Sensors
from tapline.service.metrics import Metrics
from tapline.service.process.supervisor import Supervisor
from tapline.service.sources.bus.events import FlowsEvent, VerdictsAck, parse_event
from tapline.service.sources.bus.transport import TlsFiles
from tapline.service.sources.bus.websocket_frames import event_of, parse_frame
from tapline.service.sources.capture import CaptureReader, ReadOptions
from tapline.service.sources.zeek_reader import ZeekReader
from tests.paths import DATA

SCRIPTS = DATA.parent.parent / "zeek" / "scripts"
SESSIONS = {name: DATA / "bus" / f"{name}.jsonl" for name in ("session", "session-2", "session-text")}
FORMATS = {"session": 1, "session-2": 2, "session-text": 2}
"""Of the flows, by the recording."""
RECORDED = DATA / "captures" / "telegram_videocall.pcapng"
CAPTURE = DATA / "captures" / "android.pcap"


def key(flow):
    return flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p, flow.proto, flow.start_us


def tokens(flows):
    """Tokens by endpoints and start, of the flows with payload."""
    flows = [flow for flow in flows if flow.payload_lengths]
    batch = encode(flows)
    found = {}
    for index, flow in enumerate(flows):
        ps, content = (slice(*offsets[index : index + 2]) for offsets in (batch.ps_offsets, batch.bytes_offsets))
        found[key(flow)] = (
            batch.ps_tokens[ps].tolist(),
            batch.bytes_tokens[content].tolist(),
            batch.bytes_types[content].tolist(),
        )
    assert len(found) == len(flows)
    return found


def builtin(path):
    return list(CaptureReader(path, ReadOptions(heads="header")))


def recorded_events(session):
    for line in SESSIONS[session].read_text().splitlines():
        entry = json.loads(line)
        if entry["from"] == "zeek":
            frame = parse_frame(entry["frame"])
            if frame.type == "data-message":
                yield parse_event(event_of(frame))


def last_forms(flows):
    """The last form of each flow that a sensor published."""
    return list({flow.uid: flow for flow in flows}.values())


@pytest.mark.parametrize("session", SESSIONS)
def test_a_recorded_session_gives_the_tokens_of_the_builtin_reader(session):
    events = list(recorded_events(session))
    assert None not in events
    flows = [flow for event in events if isinstance(event, FlowsEvent) for run in event.runs for flow in run.flows]
    assert {flow.complete for flow in flows} == {True, False}
    ours, zeeks = tokens(builtin(RECORDED)), tokens(last_forms(flows))
    assert set(zeeks) == set(ours)
    assert zeeks == ours


def test_sessions_of_all_forms_give_the_same_flows():
    one, two, text = (
        {
            (flow.uid, flow.complete): flow
            for event in recorded_events(session)
            if isinstance(event, FlowsEvent)
            for run in event.runs
            for flow in run.flows
        }
        for session in SESSIONS
    )
    assert text == two
    same = [name for name in Flow.__struct_fields__ if name != "server_name"]  # format 1 has none
    # Early flows of the earlier recording were published before Zeek had counted their packet.
    early = [name for name in same if name not in ("duration_us", "orig_pkts", "orig_ip_bytes")]
    assert one.keys() == two.keys()
    for place, flow in one.items():
        names = same if flow.complete else early
        assert [getattr(flow, name) for name in names] == [getattr(two[place], name) for name in names]


@pytest.mark.parametrize("session", SESSIONS)
def test_a_recorded_session_is_numbered_without_a_hole_and_acknowledged(session):
    events = list(recorded_events(session))
    flows = [event for event in events if isinstance(event, FlowsEvent)]
    assert {event.format for event in flows} == {FORMATS[session]}
    assert not any(event.refused for event in flows)
    runs = [run for event in flows for run in event.runs]
    assert [seq for run in runs for seq in range(run.seq, run.seq + len(run.flows))] == list(range(1, 58))
    acks = [event for event in events if isinstance(event, VerdictsAck)]
    assert all(ack.logged == 1 for ack in acks)
    assert len(acks) - len({ack.batch for ack in acks}) == 2  # two batches came twice: logged once, acknowledged twice


needs_zeek = [
    pytest.mark.zeek,
    pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH"),
]


class TestWithZeek:
    """With a live Zeek."""

    pytestmark = needs_zeek

    @pytest.mark.parametrize("capture", [CAPTURE, RECORDED], ids=lambda path: path.name)
    def test_zeek_and_the_builtin_reader_agree(self, capture):
        zeeks = [flow for flow in ZeekReader(capture, ReadOptions(heads="header")) if flow.payload_lengths]
        ours = {key(flow): flow for flow in builtin(capture) if flow.payload_lengths}
        assert tokens(zeeks) == tokens(ours.values())
        for flow in zeeks:
            other = ours[key(flow)]
            assert (flow.up, flow.down, flow.heads_kind) == (other.up, other.down, other.heads_kind)
            assert (flow.orig_pkts, flow.resp_ip_bytes) == (other.orig_pkts, other.resp_ip_bytes)
            assert flow.heads == other.heads

    def test_every_flow_over_the_bus_has_its_verdict_back_in_zeek(self, tmp_path, checkpoint_dir):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        flows, counts = asyncio.run(self.over_the_bus(port, tmp_path, checkpoint_dir))
        ours = tokens(builtin(CAPTURE))
        assert tokens(last_forms(flows)) == ours
        assert counts.flows == len(ours)
        assert counts.received == counts.delivered + counts.superseded
        assert uids(tmp_path / "tapline.log") == {flow.uid for flow in flows}
        assert uids(tmp_path / "tapline.log") <= uids(tmp_path / "conn.log")

    async def over_the_bus(self, port, folder, checkpoint_dir):
        flows = []
        metrics = Metrics()
        batcher = Batcher([Classifier(load_engine("onnx", checkpoint_dir))], metrics)
        pipeline = LivePipeline(batcher, metrics, queue_flows=10_000)
        taken = pipeline.take

        def take(flow, deliver):
            flows.append(flow)
            taken(flow, deliver)

        pipeline.take = take
        url = f"ws://127.0.0.1:{port}"
        sensors = Sensors(
            [url], pipeline, metrics, tls=TlsFiles(), spool_verdicts=10_000, observer=Observers(),
            supervisor=Supervisor(metrics),
        )  # fmt: skip
        batcher.start()
        async with asyncio.timeout(60), sensors.running(5):
            process = await asyncio.create_subprocess_exec(
                "zeek", "-C", "-r", str(CAPTURE), str(SCRIPTS / "replay.zeek"), f"Tapline::listen_port={port}/tcp",
                cwd=folder, env={**os.environ}, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert await process.wait() == 0
        await batcher.stop(5)
        return flows, pipeline.counts


def uids(log):
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    (names,) = (line[1:] for line in lines if line[0] == "#fields")
    return {line[names.index("uid")] for line in lines if not line[0].startswith("#")}


def test_flows_of_different_capture_readers_are_compared_at_all():
    assert len(tokens(builtin(CAPTURE))) > 50
    assert np.mean([len(ps) for ps, _, _ in tokens(builtin(CAPTURE)).values()]) > 3
