"""What a person sees of a bulk run: one line that changes on a terminal, lines now and then elsewhere, and its sum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from tapline.models.foreign_text import clean

if TYPE_CHECKING:
    from tapline.service.bulk.bulk_records import BulkCapture, CaptureAccount

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class BulkProgress:
    """Told of each account as it comes; problems have a line of their own at once."""

    def __init__(self, console: Console, captures: Sequence[BulkCapture], rest: Sequence[BulkCapture]) -> None:
        """`rest`: those of the captures that are not done yet."""
        self.rest = rest
        self.done = self._before = len(captures) - len(rest)
        self._captures = len(captures)
        self._failed = 0
        self._flows = 0
        self._bytes = 0
        self._console = console
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.file.isatty(),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("Ray starts", total=None)

    def __enter__(self) -> BulkProgress:
        if self.rest:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def add(self, account: CaptureAccount) -> None:
        """Count a capture that is done, or failed."""
        self.done += account.error is None
        self._failed += account.error is not None
        self._flows += account.rows
        self._bytes += account.size_bytes
        if problem := account.error or account.warning:
            style = "red" if account.error else "yellow"
            text = clean(f"{account.capture}: {problem}", 1024)
            self._console.print(text, style=style, markup=False, soft_wrap=True)
        self._bar.update(self._task, description=self._text())
        if self._bar.disable and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._console.print(self._text(), markup=False, soft_wrap=True)

    def total_text(self, accounts: Sequence[CaptureAccount]) -> str:
        """One sentence on the captures that were asked for, those that were done before with them."""
        before = f" ({self._before} of them before)" if self._before else ""
        left = self._captures - self.done - self._failed
        parts = [f"{self.done} of {self._captures} captures done{before}", f"{self._failed} failed"]
        parts += [f"{left} left"] if left else []
        failed = sum(account.failed for account in accounts)
        parts.append(
            f"{sum(account.rows for account in accounts)} flows" + (f", {failed} without a verdict" if failed else "")
        )
        parts.append(f"{sum(account.traces for account in accounts)} traces")
        return ", ".join([*parts, self._rate()] if self._bytes else parts)

    def _text(self) -> str:
        return f"{self.done}/{self._captures} captures, {self._flows} flows, {self._rate()}, {self._failed} failed"

    def _rate(self) -> str:
        return f"{self._bytes / 1e6 / max(time.monotonic() - self._start, 1e-3):.1f} MB/s"
