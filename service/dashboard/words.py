"""Numbers as people read them, and counters in words."""

from __future__ import annotations

from datetime import UTC, datetime

from tapline.models.verdict import Verdict

_UNITS = ("B", "kB", "MB", "GB", "TB")

LIVE_OUTCOMES = {
    "received": "flows came in, early forms counted too",
    "delivered": "verdicts went out",
    "reused": "of these needed no computing: nothing had changed since the early verdict",
    "superseded": "early forms were replaced while they waited, by the final ones",
    "shed": "were shed: more came than can be computed",
    "expired": "of these had waited past their deadline",
    "unread": "of these were refused as they came, before they were read",
    "skipped": "could get no verdict: no payload, or too few packets",
    "failed": "got no verdict because the engine failed on them",
}

HISTORY_OUTCOMES = {
    "kept": "records are in the database",
    "shed": "were shed: the database was too slow",
    "failed": "were lost: the database refused them",
    "pending": "are on their way",
}


def moment(at_us: int | float, *, day: bool = True) -> str:
    """A time in UTC; microseconds since the epoch."""
    found = datetime.fromtimestamp(at_us / 1e6, UTC)
    return f"{found:%Y-%m-%d %H:%M:%S}" if day else f"{found:%H:%M:%S}"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def span(seconds: float) -> str:
    """A duration."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def percent(share: float | None) -> str:
    """A share of 1."""
    if share is None:
        return "-"
    return f"{share:.1%}" if share < 0.9995 else "100 %"


def rate(per_second: float) -> str:
    """So many a second."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """So many of something."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def verdict_words(verdict: Verdict) -> str:
    """A verdict in a sentence."""
    if verdict.unknown:
        return f"The model has not learned traffic like this. What it knows that is nearest: {verdict.nearest}."
    return f"The model says {verdict.label}, with a confidence of {percent(verdict.confidence)}."


def ports(numbers: list[int], more: bool) -> str:
    """Some ports."""
    text = ", ".join(map(str, numbers[:12]))
    return f"{text}, …" if more or len(numbers) > 12 else text
