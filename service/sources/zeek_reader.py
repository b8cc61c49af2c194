"""The `zeek` capture reader: runs Zeek with our package on a capture file and reads the flows from its log.

How Zeek comes to its features is the package's business (`zeek/`), the fields of a flow are those of the bus (`bus`).
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from tapline.models.flow import Flow, ServerName
from tapline.service.sources.bus.events import BusEvent, EventError, FlowsEvent, parse_event
from tapline.service.sources.capture import CaptureError, ReadOptions
from tapline.service.sources.logs import DAMAGED, open_log
from tapline.service.sources.packets.columns import BlockDecoder
from tapline.service.sources.packets.container import ByteSource
from tapline.service.sources.packets.formats import MAGIC_BYTES, is_plain_capture, open_blocks
from tapline.service.sources.packets.frames import FrameDecoder
from tapline.service.sources.packets.packet_rows import PacketBlock, ReadCounters
from tapline.service.sources.zeek_folder import sweep, zeek_folder
from tapline.service.sources.zeek_owners import OWNER_VARIABLE
from tapline.service.sources.zeek_process import ZeekError, package_scripts, zeek_executable

DEFAULT_TIMEOUT_SECONDS = 4 * 3600.0
MAX_LINE_BYTES = 1 << 16
_LOG = "tapline_flow.log"
_SAID_BYTES = 4096
_FIELDS = (
    "version", "sensor", "seq", "final", "uid", "start_us", "duration_us", "orig_h", "orig_p", "resp_h", "resp_p",
    "proto", "service", "conn_state", "orig_pkts", "resp_pkts", "orig_ip_bytes", "resp_ip_bytes", "up", "down",
    "payload_lengths", "orig_bytes", "resp_bytes", "link_type", "heads_kind", "heads",
)  # fmt: skip


class ZeekReader:
    """Iterates once over the flows of a capture, as Zeek and our package see them, when Zeek is through with it.

    Takes what `CaptureReader` takes, with the same counters; `skipped` also says what Zeek itself leaves out, by what
    the built-in reader knows of it. What Zeek cannot read (compressed, a stream, cut or damaged) is rewritten into a
    temporary file first, under the same limits.

    Raises:
        CaptureError: no Zeek, no capture, Zeek failed, or it took longer than `timeout_seconds`.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> None:
        try:
            self._zeek, scripts = zeek_executable(), package_scripts()
        except ZeekError as error:
            raise CaptureError(str(error)) from None
        self.warning: str | None = None
        self.bytes_read = 0
        self._bad_lines = 0
        self._counters = ReadCounters()
        self._frames = FrameDecoder(self._counters)
        self._survey = BlockDecoder(self._frames, self._counters)
        self._path = source if isinstance(source, Path) else None
        self._source = ByteSource(source, options.max_bytes)
        self.bytes_total = self._source.total_bytes
        self._timeout_seconds = timeout_seconds
        self._arguments = [
            str(scripts / "offline.zeek"),
            f"Tapline::heads={options.heads}",
            "Tapline::other_logs=F",
            "Tapline::publish_without_payload=T",
        ]

    @property
    def packets(self) -> int:
        """Packets of the capture."""
        return self._counters.packets

    @property
    def skipped(self) -> dict[str, int]:
        """Packets that belong to no flow, and lines of Zeek's log that hold none, by reason."""
        beyond = {f"not read by Zeek: {what}": count for what, count in self._counters.beyond_zeek.items()}
        bad = {"lines of Zeek's log that are no flow": self._bad_lines} if self._bad_lines else {}
        return {**self._counters.skipped, **beyond, **bad}

    def __iter__(self) -> Iterator[Flow]:
        try:
            with zeek_folder() as folder:
                sweep()
                if not self._is_readable_by_zeek() or not self._run(self._path, folder):
                    self._rewrite_and_run(folder)
                else:
                    self._count_packets()
                self._frames.finish()
                self.bytes_read = self.bytes_total or self._source.stored_bytes
                yield from self._flows(folder / _LOG)
        finally:
            self._source.close()

    def _is_readable_by_zeek(self) -> bool:
        if self._path is None:
            return False
        with self._path.open("rb") as file:
            return is_plain_capture(file.read(MAGIC_BYTES))

    def _run(self, capture: Path | None, folder: Path) -> bool:
        """Runs Zeek on a file; False if it failed, as it does on damaged captures, after which its log is not whole."""
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                [self._zeek, "-r", str(capture and capture.resolve()), *self._arguments],
                cwd=folder,
                env={**os.environ, OWNER_VARIABLE: str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )
            try:
                return process.wait(self._timeout_seconds) == 0
            except subprocess.TimeoutExpired:
                raise CaptureError(
                    f"Zeek took longer than {self._timeout_seconds:g} seconds over the capture; "
                    "split it or use the built-in reader"
                ) from None
            finally:
                process.kill()
                process.wait()

    def _rewrite_and_run(self, folder: Path) -> None:
        """Writes the whole packets of the capture into a file of the plainest format and has Zeek read that."""
        capture = folder / "capture.pcap"
        blocks = open_blocks(self._source)
        link: int | None = None
        with capture.open("wb") as file:
            for block in blocks:
                for each in sorted({*np.unique(block.link).tolist()} - {link}):
                    if not self._frames.knows(each):
                        continue
                    if link is not None:
                        raise CaptureError(
                            "the capture has several link types, which Zeek does not read; use the built-in reader"
                        )
                    link = each
                    file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, link))
                _write(file, block, link)
                self._count(block)
        self.warning = blocks.warning
        (folder / _LOG).unlink(missing_ok=True)
        if link is None and self.packets:
            raise CaptureError("the capture has no link type that can be read")
        if link is not None and not self._run(capture, folder):
            raise CaptureError(f"Zeek failed on the capture{_reason(folder)}; try the built-in reader")

    def _count_packets(self) -> None:
        """Looks through a capture that Zeek has read for what it left out."""
        for block in open_blocks(self._source):
            self._count(block)

    def _count(self, block: PacketBlock) -> None:
        self._counters.packets += len(block.start)
        self._survey.count(block)

    def _flows(self, log: Path) -> Iterator[Flow]:
        lines = FlowLog(log)
        yield from lines if log.exists() else ()
        self._bad_lines = lines.bad_lines
        self.warning = self.warning or lines.warning


class FlowLog:
    """Iterates once over the flows of a `tapline_flow.log`, as the package's `offline.zeek` writes it. A bad line costs
    that line; `warning` says so.

    Raises:
        CaptureError: it cannot be opened, or no line of it is what this version reads.
    """

    def __init__(self, path: Path) -> None:
        self.bad_lines = 0
        self._path = path

    @property
    def warning(self) -> str | None:
        """What was left out, or None."""
        return f"{self.bad_lines} lines of Zeek's log are no flows" if self.bad_lines else None

    def __iter__(self) -> Iterator[Flow]:
        good_lines = 0
        try:
            with open_log(self._path) as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    if (flow := _parse(line)) is None:
                        self.bad_lines += 1
                        continue
                    good_lines += 1
                    yield flow
        except DAMAGED as error:
            raise CaptureError(f"cannot read it: {getattr(error, 'strerror', None) or 'it is damaged'}") from None
        if self.bad_lines and not good_lines:
            raise CaptureError(
                "Zeek's log is not what this version reads; install the tapline package of the same release"
            )


def _write(file: BinaryIO, block: PacketBlock, link: int | None) -> None:
    """Writes the packets of one link type."""
    chosen = block.link == link
    columns = (column[chosen].tolist() for column in (block.start, block.captured, block.wire, block.time_us))
    for start, captured, wire, time_us in zip(*columns, strict=True):
        seconds, micros = divmod(time_us, 1_000_000)
        file.write(struct.pack("<IIII", seconds & 0xFFFFFFFF, micros, captured, wire & 0xFFFFFFFF))
        file.write(block.data[start : start + captured])


def _parse(line: bytes) -> Flow | None:
    """The flow of one line of the package's log, None if it holds none."""
    try:
        record = msgspec.json.decode(line, type=dict[str, int | str | bool])
        event = parse_event(BusEvent("", "Tapline::flow", [record[name] for name in _FIELDS]))
        name = msgspec.convert(record.get("server_name", ""), ServerName)
    except (msgspec.DecodeError, EventError, KeyError):
        return None
    assert isinstance(event, FlowsEvent)
    flow = event.runs[0].flows[0]
    flow.server_name = name
    return flow


def _reason(folder: Path) -> str:
    """What of Zeek's messages is about the run and not about traffic."""
    with (folder / "said").open("rb") as said:
        text = said.read(_SAID_BYTES).decode(errors="replace")
    return " (it does not know the link type)" if "link type" in text else ""
