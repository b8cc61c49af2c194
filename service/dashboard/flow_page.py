"""*Flow*: one flow, the verdict on it, and what the model looked at."""

from __future__ import annotations

from fastapi import Request
from markupsafe import Markup
from nicegui import ui

from tapline.models.flow import FlowError
from tapline.models.verdict import Verdict
from tapline.service.access.access import Caller
from tapline.service.dashboard.allowed import is_allowed, signed_in
from tapline.service.dashboard.board import ASKING, Board, address
from tapline.service.dashboard.charts import payload_lengths
from tapline.service.dashboard.frame import Cell, PlainTable, frame, joined, panel, tag
from tapline.service.dashboard.shown_flows import host_cell
from tapline.service.dashboard.what_if import NOTE, what_if
from tapline.service.dashboard.words import moment, percent, size, span, verdict_words
from tapline.service.history.past import PastFlow
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.waiting import QueueFullError, VerdictError

HEX_BYTES = 256
ROW_BYTES = 16


async def flow_page(board: Board, request: Request) -> None:
    """Build the page."""
    job, number = request.query_params.get("job"), request.query_params.get("number", "")
    try:
        flow = None
        if number.isascii() and number.isdigit():
            wanted = int(number[:18])
            flow = await (board.jobs.flow(job, wanted) if job else board.history.flow_of(wanted))
    except ASKING as error:
        with frame(request, "Flow"):
            ui.label(str(error)).classes("caution").props("role=alert")
        return
    if flow is None:
        with frame(request, "Flow"):
            ui.label("There is no such flow, or it was too old to be kept.").classes("caution")
        return
    with frame(request, f"{flow.verdict.label}: {flow.orig_h} → {flow.resp_h} port {flow.resp_p}/{flow.proto}"):
        with ui.element("div").classes("two"):
            with panel("Verdict"):
                verdict_panel(flow.verdict)
            with panel("Flow"):
                _facts(flow, job)
        with panel("Payload lengths: the client's up, the server's down"):
            _lengths(board, flow)
        with panel("First bytes"):
            _content(flow)
        if (caller := signed_in(request)).may("classify"):
            with panel("What the model looked at"):
                _asked(board, caller, flow)


def verdict_panel(verdict: Verdict) -> None:
    """What the model says, and what else it considered."""
    ui.label(verdict_words(verdict))
    if verdict.unexpected_port is True:
        ui.html(
            Markup("<p>{} {} is unusual here: on this port it is {} nearly everywhere.</p>").format(
                tag("unexpected port", "alarm"), verdict.label, verdict.port_label
            ),
            sanitize=False,
        )
    considered = [(verdict.label if not verdict.unknown else nearest_name(verdict), verdict.confidence)]
    considered += [(other.label, other.confidence) for other in verdict.alternatives]
    PlainTable(("considered", "confidence", ""), ("confidence",)).show(
        [label, percent(share), Markup('<span class="share" style="width: {:.0f}px"></span>').format(160 * share)]
        for label, share in considered
    )
    if isinstance(verdict.port_label, str):
        ui.label(f"The port alone would have said {verdict.port_label}.").classes("quiet")
    state = "" if verdict.final else " This is an early verdict: the flow may still live."
    ui.label(f"By {verdict.model} {verdict.version}.{state}").classes("quiet")


def nearest_name(verdict: Verdict) -> str:
    """The nearest label, marked as such."""
    return f"{verdict.nearest} (nearest)"


def _facts(flow: PastFlow, job: str | None) -> None:
    found: list[list[Cell]] = [
        ["client", host_cell(flow.orig_h, flow.orig_p, job)],
        ["server", joined([host_cell(flow.resp_h, flow.resp_p, job), flow.proto])],
        ["server's name", flow.server_name or "-"],
        ["began (UTC)", moment(flow.start_us)],
        ["took", span(flow.duration_us / 1e6)],
        ["packets", f"{flow.orig_pkts:,} from the client, {flow.resp_pkts:,} from the server"],
        ["bytes", f"{size(flow.orig_ip_bytes)}, {size(flow.resp_ip_bytes)}"],
        ["Zeek says", " ".join(filter(None, (flow.service, flow.conn_state))) or "-"],
        ["from", " ".join(filter(None, (flow.sensor, flow.source)))],
        ["uid", _mono(flow.uid)],
        ["community id", _mono(flow.community_id)],
    ]
    PlainTable(("", " ")).show(found)
    if job:
        packets = f"/v1/jobs/{job}/flows/{flow.number}/packets"
        ui.link("Its packets, to open in Wireshark", packets).props(f'download="{flow.uid}.pcap"')
        return
    with ui.row():
        ui.link("The flow as JSON", f"/v1/flows/{flow.number}")
        ui.link("The client's flows to this port", address("/flows", {"host": flow.orig_h, "port": flow.resp_p}))


def _lengths(board: Board, flow: PastFlow) -> None:
    lengths = flow.payload_lengths
    if not lengths:
        ui.label("not kept").classes("quiet")
        return
    loaded = board.service.models.loaded().get(flow.verdict.model)
    read = len(lengths) if loaded is None else min(len(lengths), loaded.features.payload_lengths)
    chart = ui.echart(payload_lengths(lengths, read), renderer="svg").style("height: 240px; width: 100%")
    chart.props('role=img aria-label="Payload lengths of the packets in order"')
    with ui.expansion("as numbers").props("dense"):
        ui.label(" ".join(f"{length:+d}" for length in lengths)).classes("mono")
    if read < len(lengths):
        ui.label(f"The model reads the first {read}; the pale ones it does not.").classes("quiet")


def _content(flow: PastFlow) -> None:
    client, server = bytes.fromhex(flow.orig_bytes), bytes.fromhex(flow.resp_bytes)
    if not client and not server:
        ui.label(
            "Not kept. The live path forgets content unless it is started with --history-content; of a capture under "
            "Captures it is there."
        ).classes("quiet")
        return
    for name, data in (("client", client), ("server", server)):
        ui.label(f"{name}, {len(data)} bytes").classes("quiet")
        ui.label(hex_rows(data[:HEX_BYTES])).classes("mono hex").props("tabindex=0")


def _asked(board: Board, caller: Caller, flow: PastFlow) -> None:
    """Asked only on demand: it costs the engine a dozen flows."""
    ui.label(NOTE).classes("quiet")
    table = PlainTable(("shown", "label", "confidence"), ("confidence",), "")

    async def ask() -> None:
        if not is_allowed(caller, "classify", "ask the model again"):
            return
        button.disable()
        try:
            parts = await what_if(flow, board.service.models.batcher(flow.verdict.model))
        except (*ASKING, QueueFullError, VerdictError, FlowError, UnknownModelError) as error:
            ui.notify(str(error), type="warning")
        else:
            table.show(_part_row(part.shown, part.verdict) for part in parts)
        finally:
            button.enable()

    button = ui.button("Ask the model again, in part", on_click=ask).props("outline no-caps")


def _part_row(name: str, verdict: Verdict | None) -> list[Cell]:
    if verdict is None:
        return [name, "no verdict on so little", ""]
    label = f"unknown, nearest {verdict.nearest}" if verdict.unknown else verdict.label
    return [name, label, percent(verdict.confidence)]


def hex_rows(data: bytes) -> str:
    """Bytes as people read them: place, hexadecimal, text."""
    rows = []
    for start in range(0, len(data), ROW_BYTES):
        piece = data[start : start + ROW_BYTES]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        rows.append(f"{start:04x}  {piece.hex(' '):<{3 * ROW_BYTES}} {text}")
    return "\n".join(rows)


def _mono(text: str) -> Markup:
    return Markup('<span class="mono">{}</span>').format(text)
