"""`--where`: conditions on flows and traces, read from one small syntax, and the writer that keeps what meets them."""

from __future__ import annotations

import ipaddress
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.results.records import Summary
from tapline.service.results.writers import Writer
from tapline.service.traces.trace_verdict import TraceVerdict

SYNTAX = (
    "conditions with commas between them, all of which must hold: label=dns, nearest=tls, model=intrusion, "
    "unknown=yes, suspicious=yes, host=10.0.0.5, host=10.0.0.0/8, port=443, proto=udp, confidence<0.8, bytes>=1000000; "
    "= and != go with all, < <= > >= with numbers"
)
"""Said in help, and where a condition cannot be read."""

_CONDITION = re.compile(r"\s*([a-z_]+)\s*(!=|<=|>=|=|<|>)\s*(.+?)\s*\Z", re.IGNORECASE)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class WhereError(ValueError):
    """A condition that cannot be read; the message says what can."""


Row = tuple[Flow | TraceVerdict, Verdict]
"""A flow or a trace with its verdict."""

_Values = Callable[[Row], list[object]]
"""Those of a field in a row, such as both ports of a flow; none where rows of the kind have no such field."""


def _of_verdict(name: str) -> _Values:
    return lambda row: [getattr(row[1], name)]


def _of_flow(*names: str) -> _Values:
    return lambda row: [getattr(row[0], name) for name in names] if isinstance(row[0], Flow) else []


def _hosts(row: Row) -> list[object]:
    record = row[0]
    return [record.orig_h, record.resp_h] if isinstance(record, Flow) else list(record.subject.split(" - "))


def _bytes(row: Row) -> list[object]:
    return [row[0].orig_ip_bytes + row[0].resp_ip_bytes] if isinstance(row[0], Flow) else []


def _suspicious(row: Row) -> list[object]:
    found = row[0].suspicious if isinstance(row[0], TraceVerdict) else None
    return [] if found is None else [found]


_NUMBERS: dict[str, _Values] = {
    "confidence": _of_verdict("confidence"), "bytes": _bytes, "port": _of_flow("orig_p", "resp_p"),
}  # fmt: skip


@dataclass(frozen=True)
class _Condition:
    values: _Values
    test: Callable[[object], bool]
    negated: bool

    def holds(self, row: Row) -> bool:
        """Whether any value of the field passes, or with `!=` none; False where there is no value."""
        values = self.values(row)
        return bool(values) and any(map(self.test, values)) is not self.negated


class Where:
    """All conditions together. One on a field that a row does not have, as `port` of a trace, does not hold."""

    def __init__(self, texts: Iterable[str]) -> None:
        """`texts`: as of `SYNTAX`.

        Raises:
            WhereError: one cannot be read.
        """
        self._conditions = [_condition(part) for text in texts for part in text.split(",")]

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def holds(self, record: Flow | TraceVerdict, verdict: Verdict) -> bool:
        """Whether a flow or a trace meets them."""
        return all(condition.holds((record, verdict)) for condition in self._conditions)


def _condition(text: str) -> _Condition:
    found = _CONDITION.match(text)
    if found is None:
        raise WhereError(f"`{text.strip()}` is no condition; give {SYNTAX}")
    name, sign, value = found[1].lower(), found[2], found[3]
    if name in _NUMBERS:
        number = _number(name, value)
        compare = _COMPARE["=" if sign == "!=" else sign]
        return _Condition(_NUMBERS[name], lambda given: compare(float(given), number), sign == "!=")  # type: ignore[arg-type]
    if name not in _NAMED:
        raise WhereError(f"`{name}` is no field; give {SYNTAX}")
    if sign not in ("=", "!="):
        raise WhereError(f"`{name}` is no number: `{sign}` does not go with it; give {SYNTAX}")
    values, make_test = _NAMED[name]
    return _Condition(values, make_test(name, value), sign == "!=")


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise WhereError(f"`{name}` takes a number, not `{value}`")
    return number


def _same_text(name: str, value: str) -> Callable[[object], bool]:
    return lambda given: str(given).lower() == value.lower()


def _same_truth(name: str, value: str) -> Callable[[object], bool]:
    if value.lower() not in _TRUTH:
        raise WhereError(f"`{name}` takes yes or no, not `{value}`")
    return lambda given: given is _TRUTH[value.lower()]


def _in_network(name: str, value: str) -> Callable[[object], bool]:
    """Whether an address is in a network, or a subject is just this text, as that by MAC is."""
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", value.lower()):
            raise WhereError(
                f"`{name}` takes an address, a network such as 10.0.0.0/8, or a MAC address, not `{value}`"
            ) from None
        return _same_text(name, value)

    def inside(given: object) -> bool:
        try:
            return ipaddress.ip_address(str(given)) in network
        except ValueError:  # a subject by MAC
            return False

    return inside


_NAMED: dict[str, tuple[_Values, Callable[[str, str], Callable[[object], bool]]]] = {
    "label": (_of_verdict("label"), _same_text),
    "nearest": (_of_verdict("nearest"), _same_text),
    "model": (_of_verdict("model"), _same_text),
    "proto": (_of_flow("proto"), _same_text),
    "unknown": (_of_verdict("unknown"), _same_truth),
    "suspicious": (_suspicious, _same_truth),
    "host": (_hosts, _in_network),
}


class WhereWriter:
    """Passes on to another writer the flows and traces that meet conditions; a flow without a verdict meets none."""

    def __init__(self, target: Writer, where: Where) -> None:
        self._target = target
        self._where = where
        self._met = self._seen = 0

    @property
    def account(self) -> str:
        """How many of the flows and traces met the conditions."""
        return f"{self._met:,} of {self._seen:,} flows and traces meet the conditions; the summary is of all"

    def add(self, flow: Flow, verdict: Verdict | None, name: str) -> None:
        """Write the flow, where it is wanted."""
        self._seen += 1
        if verdict is not None and self._where.holds(flow, verdict):
            self._met += 1
            self._target.add(flow, verdict, name)

    def add_trace(self, trace: TraceVerdict) -> None:
        """Write the trace, where it is wanted."""
        self._seen += 1
        if self._where.holds(trace, trace.verdict):
            self._met += 1
            self._target.add_trace(trace)

    def finish(self, summary: Summary) -> None:
        """Write the end: the summary is that of everything."""
        self._target.finish(summary)
