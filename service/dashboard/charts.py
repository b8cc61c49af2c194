"""The options of the charts, as ECharts takes them: plain functions of what is drawn.

Their colours can be read on light and dark grounds alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tapline.models.verdict import UNKNOWN
from tapline.service.dashboard.activity import Step

Options = dict[str, Any]

PALETTE = (
    "#3f88c5", "#d1793a", "#4c9a63", "#b65fc0", "#c9a227", "#5b7fa6", "#c05a6b", "#3aa6a0", "#8f6fd1", "#7d8f3a",
)  # fmt: skip
GREY = "#7d878d"
OTHER = "other"
LABELS = 9
"""Labels that have a colour of their own; the rest is *other*."""

_LINE = "rgba(128,140,148,0.28)"
_TEXT = {"color": GREY, "fontFamily": "inherit"}


def label_colour(label: str, rank: int) -> str:
    """The colour of the label that is so frequent."""
    return GREY if label in (UNKNOWN, OTHER) else PALETTE[rank % len(PALETTE)]


def ranked(counts: Counter[str]) -> list[str]:
    """The labels that are drawn, most frequent first, `unknown` before the last, the rest as `other`."""
    names = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if name != UNKNOWN]
    shown = names[:LABELS]
    if UNKNOWN in counts:
        shown.append(UNKNOWN)
    return shown + ([OTHER] if len(names) > LABELS else [])


def verdict_rates(steps: Sequence[Step]) -> Options:
    """Verdicts a second by label over time, stacked."""
    totals: Counter[str] = Counter()
    for step in steps:
        totals.update(step.labels)
    names = ranked(totals)
    own = set(names) - {OTHER}
    series = []
    for rank, name in enumerate(names):
        points = []
        for step in steps:
            count = (
                sum(value for label, value in step.labels.items() if label not in own)
                if name == OTHER
                else step.labels.get(name, 0)
            )
            points.append([round(step.ended_at * 1000), round(count / step.seconds, 2) if step.seconds else 0])
        series.append(_area(name, points, label_colour(name, rank)))
    return {**_time_axes("verdicts a second"), "series": series}


def counted_over_time(points: Mapping[str, Sequence[tuple[float, int]]], axis: str, step_seconds: float) -> Options:
    """Counts by label over time, in steps, bars on each other; times in seconds since the epoch."""
    totals = Counter({name: sum(count for _, count in found) for name, found in points.items()})
    names = ranked(totals)
    own = set(names) - {OTHER}
    series = []
    for rank, name in enumerate(names):
        if name == OTHER:
            summed: Counter[float] = Counter()
            for label, found in points.items():
                if label not in own:
                    summed.update(dict(found))
            data: Iterable[tuple[float, int]] = sorted(summed.items())
        else:
            data = points[name]
        series.append({
            "name": name, "type": "bar", "stack": "all", "barMaxWidth": 18, "color": label_colour(name, rank),
            "data": [[round(at * 1000), count] for at, count in data],
        })  # fmt: skip
    options = {**_time_axes(axis), "series": series}
    times = [at for found in points.values() for at, _ in found]
    if times:
        options["xAxis"] |= {
            "min": round(1000 * (min(times) - step_seconds)),
            "max": round(1000 * (max(times) + step_seconds)),
        }
    return options


def payload_lengths(lengths: Sequence[int], read: int) -> Options:
    """Payload lengths as bars, client's up and server's down; `read`: how many of them the model looked at."""
    bars = [
        {
            "value": length,
            "itemStyle": {"color": PALETTE[0] if length > 0 else PALETTE[1], "opacity": 1 if index < read else 0.35},
        }
        for index, length in enumerate(lengths)
    ]
    return {
        **_frame(),
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "category", "data": list(range(1, len(lengths) + 1)), "name": "packet", **_axis()},
        "yAxis": {"type": "value", "name": "bytes", **_axis()},
        "series": [{"type": "bar", "name": "payload", "data": bars, "barCategoryGap": "15%", "barMaxWidth": 28}],
    }


def flows_of_trace(rows: Sequence[tuple[float, float, str, str]]) -> Options:
    """Flows on a time line, sized by their share: (start in seconds, share, name, label)."""
    labels = ranked(Counter(row[3] for row in rows))
    series = []
    for rank, label in enumerate(labels):
        series.append({
            "name": label, "type": "scatter", "color": label_colour(label, rank),
            "data": [
                {"value": [round(at * 1000), round(share * 100, 2)], "name": name, "symbolSize": 6 + 34 * share**0.5}
                for at, share, name, own in rows if own == label
            ],
        })  # fmt: skip
    options = {**_time_axes("share in %"), "series": series}
    options["tooltip"] = {"trigger": "item", "formatter": "{b}: {a}"}
    return options


def _area(name: str, points: list[list[float]], colour: str) -> Options:
    return {
        "name": name, "type": "line", "stack": "all", "step": "start", "symbol": "none", "color": colour,
        "data": points, "lineStyle": {"width": 1}, "areaStyle": {"opacity": 0.55},
    }  # fmt: skip


def _frame() -> Options:
    return {
        "animation": False,
        "useUTC": True,
        "backgroundColor": "transparent",
        "textStyle": _TEXT,
        "grid": {"left": 8, "right": 14, "top": 34, "bottom": 8, "containLabel": True},
    }


def _axis() -> Options:
    return {
        "axisLabel": {**_TEXT, "hideOverlap": True},
        "nameTextStyle": {**_TEXT, "align": "left"},
        "axisLine": {"lineStyle": {"color": _LINE}},
        "splitLine": {"lineStyle": {"color": _LINE}},
    }


def _time_axes(name: str) -> Options:
    return {
        **_frame(),
        "legend": {"type": "scroll", "bottom": 0, "textStyle": _TEXT, "icon": "roundRect", "itemWidth": 12},
        "grid": {
            "left": 8,
            "right": 32,
            "top": 34,
            "bottom": 34,
            "containLabel": True,
        },  # half of the last tick's label
        "tooltip": {"trigger": "axis"},
        "xAxis": {"type": "time", **_axis(), "splitLine": {"show": False}},
        "yAxis": {"type": "value", "name": name, "minInterval": 0, **_axis()},
    }
