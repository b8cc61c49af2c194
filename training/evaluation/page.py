"""The report of a measurement: one HTML file with everything in it, and its figures as JSON beside."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

import msgspec

from tapline.training.evaluation import plots
from tapline.training.evaluation.card import interval_text
from tapline.training.evaluation.confident_mistakes import CONFIDENT, MOST_CONFIDENT_MISTAKES
from tapline.training.evaluation.measured import Figures, Measured, ReportTable, figures_of
from tapline.training.evaluation.wording import many
from tapline.training.loop.run_files import whole
from tapline.training.loop.scores import ClassScore

_CSS = """
:root{color-scheme:light;--ink:#1f2933;--muted:#616e7c;--line:#e4e7eb;--own:#1d6fb8}
*{box-sizing:border-box}body{margin:0;background:#f5f7fa;color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:36px 20px 60px}h1{font-size:27px;margin:0}
h2{font-size:18px;margin:0 0 4px}p{margin:4px 0 12px;max-width:75ch}.quiet{color:var(--muted)}
.row{display:grid;gap:16px;margin:18px 0;grid-template-columns:repeat(auto-fit,minmax(170px,1fr))}
.two{grid-template-columns:repeat(auto-fit,minmax(400px,1fr))}
.card{background:#fff;border:1px solid var(--line);border-radius:10px;padding:16px 18px;min-width:0;overflow-x:auto}
main>.card{margin:18px 0}
.big{font-size:29px;font-weight:650;letter-spacing:-.02em;line-height:1.2}.card svg{display:block;max-width:640px}
.card.wide svg{max-width:900px;margin:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px}th{color:var(--muted);font-weight:500}
th,td{padding:4px 10px 4px 0;border-bottom:1px solid var(--line);text-align:right;font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.left{text-align:left!important}tr:last-child td{border:0}
.bar{display:inline-block;height:9px;border-radius:3px;background:var(--own);vertical-align:middle}
td{white-space:nowrap}.track{display:inline-block;width:84px;text-align:left;background:#eef1f5;border-radius:3px;line-height:9px;
vertical-align:middle;margin-left:8px}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:8px 0 0}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}@media(max-width:500px){.two{grid-template-columns:1fr}}
@media print{body{background:#fff}.card{break-inside:avoid}}
"""


REPORTS = ("report.json", "report.html")


def write_report(directory: Path, measured: Measured) -> Figures:
    """Write both `REPORTS` into `directory`; gives the figures."""
    figures = figures_of(measured)
    json = msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"
    for name, text in zip(REPORTS, (json, render(measured, figures).encode()), strict=True):
        with whole(directory / name) as staging:
            staging.write_bytes(text)
    return figures


def render(measured: Measured, figures: Figures) -> str:
    """The page."""
    sections = [
        _head(measured, figures),
        _numbers(figures),
        _models(figures),
        _two(
            _card("Can its confidence be believed?", plots.reliability(figures), _RELIABILITY),
            _card("What leaving out the unsure ones buys", plots.risk_coverage(figures), _RISK),
        ),
        _unknown(measured, figures),
        _curves(measured),
        _card(
            "What is taken for what",
            plots.confusion(measured),
            "Each row adds up to 100 %: where the things of one class went.",
            wide=True,
        ),
        _two(_classes(figures), _mistakes(figures)),
        _confident(figures),
        *map(_table_card, measured.tables),
        _notes(measured),
    ]
    return _page(measured.title, sections)


def page_of_tables(title: str, tables: Iterable[ReportTable]) -> str:
    """A page of tables alone."""
    head = f"<header><h1>{escape(title)}</h1></header>"
    return _page(title, [head, *(_table_card(each) for each in tables)])


def _page(title: str, sections: Iterable[str]) -> str:
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


_RELIABILITY = (
    "A point on the dashed line: verdicts with that confidence are right as often as they say. Below it they promise "
    "too much. Large points stand for many."
)
_RISK = "Read from the right: the dashed line is the error when every verdict is kept."


def _head(measured: Measured, figures: Figures) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in measured.facts.items())
    classes = "1 class" if figures.classes == 1 else f"{figures.classes} classes"
    size = f"{many(figures.measured, figures.unit)} of {many(figures.captures, 'capture')}, {classes}"
    return f'<header><h1>{escape(measured.title)}</h1><p class="quiet">{size}</p></header>' + (
        f'<section class="card"><dl>{facts}</dl></section>' if facts else ""
    )


def _numbers(figures: Figures) -> str:
    own = figures.models[0]
    numbers = [
        ("macro-F1", f"{own.macro_f1:.3f}", f"95 %: {interval_text(own.interval)}"),
        ("weighted F1", f"{figures.weighted_f1:.3f}", f"accuracy {figures.accuracy:.3f}"),
        ("calibration error", f"{figures.calibration_error:.3f}", "0 is perfect"),
    ]
    if figures.unknown_auroc is not None:
        rejected = f"{figures.unknown_rejected:.0%} of them rejected, {figures.known_rejected:.1%} of the known"
        numbers.append(("AUROC of unknown", f"{figures.unknown_auroc:.3f}", rejected))
    cards = "".join(
        f'<div class="card"><div class="quiet">{name}</div><div class="big">{value}</div>'
        f'<div class="quiet">{note}</div></div>'
        for name, value, note in numbers
    )
    return f'<section class="row">{cards}</section>'


def _models(figures: Figures) -> str:
    if len(figures.models) == 1:
        return ""
    rows = [
        (model.name, f"{model.macro_f1:.3f}", interval_text(model.interval), f"{model.gain:+.3f}",
         f"{model.gain_interval.low:+.3f} to {model.gain_interval.high:+.3f}")
        for model in figures.models[1:]
    ]  # fmt: skip
    table = _table(("beside", "macro-F1", "95 %", "gain of this model", "95 %"), rows)
    return _card("Is it worth it?", plots.models(figures) + table, "What else there is, on the same captures.")


def _unknown(measured: Measured, figures: Figures) -> str:
    if not len(measured.unknown_confidence):
        return ""
    text = (
        f"Measured on {len(measured.unknown_confidence):,} {figures.unit}s of classes that the model never saw. Below "
        f"a confidence of {figures.threshold:.3f} a verdict is <em>unknown</em>."
    )
    return _two(
        _card("Does it know what it does not know?", plots.unknown_roc(measured, figures), text),
        _card("How sure it is of either", plots.confidences(measured, figures), "Dashed: the threshold of unknown."),
    )


def _curves(measured: Measured) -> str:
    cards = [_card(curve.title, plots.curve(curve), escape(curve.note)) for curve in measured.curves]
    return _two(*cards) if cards else ""


def _classes(figures: Figures) -> str:
    def f1(score: ClassScore) -> str:
        return f'{score.f1:.2f}<span class="track"><span class="bar" style="width:{score.f1:.0%}"></span></span>'

    rows = [
        (escape(score.label), str(score.captures), f"{score.support:,}", f"{score.precision:.2f}",
         f"{score.recall:.2f}", f1(score))
        for score in figures.class_scores
    ]  # fmt: skip
    table = _table(("class", "captures", f"{figures.unit}s", "precision", "recall", "F1"), rows, raw=True)
    return _card("Class by class", table)


def _mistakes(figures: Figures) -> str:
    rows = [(m.label, m.called, f"{m.count:,}", str(m.captures)) for m in figures.mistakes]
    if not rows:
        return _card("Largest confusions", "<p>None: every one is right.</p>")
    return _card("Largest confusions", _table(("is", "was called", f"{figures.unit}s", "captures"), rows))


def _confident(figures: Figures) -> str:
    if not figures.confident_mistakes:
        return ""
    head = ("is", "was called", "learned", f"{figures.unit}s", "captures", "corpora")
    rows = [
        (m.label, m.called, "yes" if m.learned else "never", f"{m.count:,}", str(m.captures), ", ".join(m.corpora))
        for m in figures.confident_mistakes
    ]
    text = f"Every pair of labels with more than {MOST_CONFIDENT_MISTAKES} of them, confidence above {CONFIDENT}."
    return _card("Mistakes that it was sure of", _table(head, rows), text)


def _notes(measured: Measured) -> str:
    if not measured.notes:
        return ""
    return _card("How this was measured", "".join(f"<p>{escape(note)}</p>" for note in measured.notes))


def _card(title: str, content: str, text: str = "", *, wide: bool = False) -> str:
    quiet = f'<p class="quiet">{text}</p>' if text else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{escape(title)}</h2>{quiet}{content}</section>'


def _table_card(table: ReportTable) -> str:
    return _card(table.title, _table(table.head, table.rows), escape(table.text))


def _two(*cards: str) -> str:
    return f'<div class="row two">{"".join(cards)}</div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, raw: bool = False) -> str:
    heads = "".join(f"<th{' class=left' if name in _WORDS else ''}>{escape(name)}</th>" for name in head)
    lines = ["".join(_cell(cell if raw else escape(cell)) for cell in row) for row in rows]
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(f'<tr>{x}</tr>' for x in lines)}</tbody></table>"


_WORDS = frozenset({"class", "beside", "is", "was called", "learned", "corpora", "this model", "says", "on"})
"""Heads of columns of words."""


def _cell(text: str) -> str:
    """A cell; numbers stand to the right, words to the left."""
    return f"<td>{text}</td>" if text[:1] in "+-0123456789" else f'<td class="left">{text}</td>'
