"""*Captures*: hand one in, see how far it is, look at what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import Request
from nicegui import background_tasks, ui

from tapline.service.access.access import Caller
from tapline.service.dashboard.allowed import accounted, is_allowed, refuse, signed_in
from tapline.service.dashboard.board import ASKING, Board, address
from tapline.service.dashboard.frame import Cell, PlainTable, frame, joined, link, panel, tag, toned
from tapline.service.dashboard.shown_traces import TRACE_COLUMNS, trace_rows
from tapline.service.dashboard.words import counted, moment, percent, size
from tapline.service.jobs.job import Job
from tapline.service.results.records import left_out_text

COLUMNS = ("capture", "state", "flows", "size", "handed in (UTC)", "result")
JOB_TRACES = 200

_UPLOAD = """
async (event) => {
  event.preventDefault();
  const files = [...(event.dataTransfer?.files ?? event.target.files ?? [])];
  const told = document.getElementById('upload-state');
  for (const file of files) {
    await new Promise((done) => {
      const request = new XMLHttpRequest();
      request.open('POST', '/v1/jobs?name=' + encodeURIComponent(file.name));
      request.setRequestHeader('Content-Type', 'application/octet-stream');
      request.upload.onprogress = (sent) => {
        told.textContent = file.name + ': ' + Math.round(100 * sent.loaded / Math.max(1, sent.total)) + ' % sent';
      };
      request.onload = () => {
        let problem = '';
        if (request.status >= 300) {
          try { problem = JSON.parse(request.responseText).error.message; } catch { problem = 'refused'; }
        }
        told.textContent = file.name + ': ' + (problem || 'received');
        done();
      };
      request.onerror = () => { told.textContent = file.name + ': the connection broke'; done(); };
      request.send(file);
    });
  }
  if (event.target.value !== undefined) event.target.value = '';
}
"""


def captures_page(board: Board, request: Request) -> None:
    """Build the page."""
    with frame(request, "Captures"):
        if (caller := signed_in(request)).may("classify"):
            with panel("Hand in a capture"):
                _drop_zone(board, caller)
        else:
            ui.label("Handing in captures wants a key of the scope classify.").classes("quiet")
        with panel("Captures"):
            table = PlainTable(COLUMNS, ("flows", "size"), "none yet")
    _follow(board, lambda: table.show(_row(job) for job in board.jobs.list()))


def _drop_zone(board: Board, caller: Caller) -> None:
    zone = ui.element("div").classes("drop").props('id=drop role=group aria-label="Drop captures here"')
    zone.on("dragover", js_handler="(event) => event.preventDefault()")
    zone.on("drop", js_handler=_UPLOAD)
    with zone:
        ui.label("Drop pcap or pcapng files here, plain, gzip or zstd, or choose them:")
        chooser = ui.element("input").props('type=file multiple aria-label="Choose captures"')
        chooser.on("change", js_handler=_UPLOAD)
        ui.label().props("id=upload-state role=status").classes("quiet")
    directory = board.service.settings.captures_dir
    if directory is not None:
        with ui.row():
            path = ui.input("or a path below the captures of this machine", placeholder="2026/june.pcap.gz")
            path.props("outlined dense stack-label")

            async def submit() -> None:
                if not is_allowed(caller, "classify", "hand in a capture by its path"):
                    return
                try:
                    await board.jobs.submit_path(path.value, owner=caller.owner)
                except ASKING as error:
                    ui.notify(str(error), type="warning")

            ui.button("Read it", on_click=submit).props("unelevated no-caps")


def _follow(board: Board, show: Callable[[], None]) -> None:
    """Show again whenever a job changes, while the page is open."""
    client = ui.context.client

    async def follow() -> None:
        since = 0
        while not client.is_deleted:
            since = await board.jobs.changed(since)
            with client:
                show()

    task = background_tasks.create(follow(), name="captures page")
    client.on_delete(lambda: task.cancel() if isinstance(task, asyncio.Task) else None)


def _row(job: Job) -> list[Cell]:
    place = address("/capture", {"job": job.id})
    result: Cell = ""
    if job.state == "done":
        result = joined(
            [link("flows", address("/flows", {"job": job.id})), link("report", f"/v1/jobs/{job.id}/report")]
        )
    return [
        link(job.name, place), _state(job), f"{job.flows:,}", size(job.size_bytes), moment(job.created * 1e6), result
    ]  # fmt: skip


def _state(job: Job) -> Cell:
    match job.state:
        case "reading":
            return f"reading, {percent(job.share)}"
        case "failed":
            return toned(f"failed: {job.error}", "alarm")
        case "done" if job.warning:
            return joined(["done", tag("incomplete", "caution")])
    return job.state


async def capture_page(board: Board, request: Request) -> None:
    """Build the page of one capture."""
    identity = request.query_params.get("job", "")
    try:
        job = board.jobs.get(identity)
        traces = (await board.jobs.traces(identity, limit=JOB_TRACES)).items if job.state == "done" else []
    except ASKING as error:
        with frame(request, "Capture"):
            ui.label(str(error)).classes("caution").props("role=alert")
        return
    with frame(request, job.name):
        with panel():
            state = ui.html("", sanitize=False)
            with ui.row().style("align-items: center"):
                if job.state == "done":
                    ui.link("Flows", address("/flows", {"job": job.id}))
                    ui.link("Report, one page to send", f"/v1/jobs/{job.id}/report").props("download")
                    ui.link("JSON", f"/v1/jobs/{job.id}/result")
                    ui.link("CSV", f"/v1/jobs/{job.id}/result?format=csv")
                _buttons(board, signed_in(request), job)
        if job.summary is not None:
            _summary(job)
        if job.state == "done":
            with panel("Hosts: what their flows together say"):
                PlainTable(TRACE_COLUMNS, ("flows", "confidence"), "no host had flows enough").show(
                    trace_rows(traces, job.id)
                )

    def show() -> None:
        now = board.jobs.get(identity)
        state.set_content(joined([_state(now), f"{now.flows:,} flows, {size(now.size_bytes)}"], ", "))
        if now.state != job.state:
            ui.navigate.reload()

    _follow(board, show)


def _buttons(board: Board, caller: Caller, job: Job) -> None:
    if not caller.owns(job.owner):
        return

    def may(action: str) -> bool:
        if not caller.owns(job.owner):
            refuse(caller, action, "another key handed this job in, so it wants a key of the scope admin")
        return caller.owns(job.owner)

    async def cancel() -> None:
        if may(action := f"cancel job {job.id}"):
            await accounted(caller, action, lambda: board.jobs.cancel(job.id))

    async def delete() -> None:
        if may(action := f"delete job {job.id}"):
            await accounted(caller, action, lambda: board.jobs.delete(job.id))
            ui.navigate.to("/captures")

    if not job.has_ended:
        ui.button("Cancel", on_click=cancel).props("outline no-caps dense")
        return
    with ui.dialog() as dialog, ui.card():
        ui.label(f"Delete {job.name} and its result?")
        with ui.row():
            ui.button("Delete", on_click=delete).props("unelevated no-caps color=negative")
            ui.button("Keep", on_click=dialog.close).props("flat no-caps")
    ui.button("Delete", on_click=dialog.open).props("outline no-caps dense")


def _summary(job: Job) -> None:
    summary = job.summary
    assert summary is not None
    with ui.element("div").classes("two"):
        with panel("Labels"):
            PlainTable(("label", "flows", "bytes", "mean confidence"), ("flows", "bytes", "mean confidence")).show(
                [
                    link(label.label, address("/flows", {"job": job.id, "label": label.label})),
                    f"{label.flows:,}", size(label.ip_bytes), percent(label.mean_confidence),
                ]
                for label in summary.labels
            )  # fmt: skip
        with panel("Account"):
            rows: list[list[Cell]] = [
                ["flows", f"{summary.flows:,}"], ["with a verdict", f"{summary.classified:,}"],
                ["unknown", f"{summary.unknown:,}"], ["without payload", f"{summary.without_payload:,}"],
                ["too few packets", f"{summary.below_min_packets:,}"],
            ]  # fmt: skip
            if summary.failed:
                rows.append(["the engine failed on", toned(counted(summary.failed, "flow"), "alarm")])
            PlainTable(("", " "), (" ",)).show(rows)
            for entry in summary.inputs:
                for text in (left_out_text(entry), entry.warning, entry.error):
                    if text:
                        ui.label(text).classes("quiet")
