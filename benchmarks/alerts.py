"""What alert rules cost: time of a flow in the event loop by the number of rules, and memory with every bound reached.

python benchmarks/alerts.py
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from hardware import describe, report

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.alerts import rule_engine
from tapline.service.alerts.rule_conditions import ready_rules
from tapline.service.alerts.rule_engine import RuleEngine
from tapline.service.alerts.rule_facts import flow_facts
from tapline.service.alerts.rule_file import read_rules

LABELS = ("TLS", "DNS", "HTTP", "QUIC", "SSH", "NTP", "MDNS", "SMTP", "RDP", "BitTorrent")
FLOWS = 5_000
RUNS = 7
RULE_COUNTS = (0, 10, 50, 200)

KINDS = (
    'label = "{label}"\nport = [22, 443]\noriginator = "@own"\nresponder = "!@own"\n',
    'unexpected_port = true\nallow = ["own"]\n',
    'server_name = "*.bad{n}.example"\n',
    'label = ["{label}", "R*"]\noutside = {{days = "mon-fri", hours = "07:00-20:00"}}\nhost = "10.{n}.0.0/16"\n',
    'label = "{label}"\nrate = {{count = 30, seconds = 600, by = "originator"}}\n',
    'max_confidence = 0.5\nsensor = "gate-{n}"\n',
    'label = "!TLS"\nmin_confidence = 0.9\nresponder = ["192.0.2.0/24", "2001:db8::/32"]\n',
    'unknown_share = {{min = 0.5, seconds = 3600, by = ["sensor", "model"]}}\nlabel = "*"\n',
)


def rules(count: int) -> str:
    """So many rules, of every kind of condition, and a list of 10,000 networks."""
    entries = ", ".join(f'"10.{number >> 8}.{number & 255}.0/24"' for number in range(10_000))
    text = f'[list.own]\nof = "networks"\nentries = [{entries}]\n'
    for number in range(count):
        kind = KINDS[number % len(KINDS)].format(label=LABELS[number % len(LABELS)], n=number % 250)
        text += f'[[rule]]\nname = "r{number}"\n{kind}'
    return text


def flows(count: int) -> list[tuple[Flow, Verdict]]:
    """Flows of a network: few labels, many hosts; a ClientHello of none, so that names are looked for in vain."""
    chance = random.Random(1)
    found = []
    for number in range(count):
        label = chance.choices(LABELS, weights=(40, 30, 10, 8, 2, 3, 3, 1, 1, 2))[0]
        flow = Flow(
            f"C{number}", number, 1000, f"10.{chance.randrange(200)}.{chance.randrange(250)}.{chance.randrange(250)}",
            chance.randrange(1024, 65_536), f"198.51.{chance.randrange(100)}.{chance.randrange(250)}",
            chance.choice((53, 80, 443)), "tcp", sensor="gate", orig_bytes=chance.randbytes(256),
        )  # fmt: skip
        said = Verdict(label, label, chance.random(), False, [], "flow-protocols", "2", chance.random() < 0.5)
        found.append((flow, said))
    return found


def engine_of(text: str) -> RuleEngine:
    """The rules of a text at work."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.toml"
        path.write_text(text)
        return RuleEngine(ready_rules(read_rules(path)))


def microseconds(engine: RuleEngine, given: list[tuple[Flow, Verdict]], at_us: int) -> tuple[float, int]:
    """Of processor time of a flow on average, its facts included; and how many alerts there were."""
    alerts = 0
    started = time.thread_time()
    for number, (flow, said) in enumerate(given):
        alerts += len(engine.alerts(flow_facts("ws://sensor", flow, said, at_us + 100 * number)))
    return (time.thread_time() - started) / len(given) * 1e6, alerts


def main() -> None:
    """Print both."""
    print(describe())
    given = flows(FLOWS)
    for count in RULE_COUNTS:
        engine = engine_of(rules(count))
        found = [microseconds(engine, given, run * 100 * FLOWS) for run in range(RUNS)]
        report(f"alerts, {count} rules", f"{min(found)[0]:.1f} us a flow; {found[0][1]} alerts of {FLOWS:,} flows")
    fill = '[[rule]]\nname = "early"\nsuppress = {by = ["originator", "responder", "sensor"]}\n'
    fill += '[[rule]]\nname = "count"\nrate = {count = 1000, seconds = 600, by = ["originator", "port"]}\n'
    engine = engine_of(fill)
    gc.collect()
    tracemalloc.start()
    said = Verdict("TLS", "TLS", 0.9, False, [], "flow-protocols", "2", False)
    for number in range(2 * max(rule_engine.MAX_EARLY, rule_engine.MAX_IDENTIFIERS)):
        address = f"2001:db8::{number >> 16:x}:{number & 65_535:x}"
        flow = Flow(f"C{number:0126}", number, 1, address, 1, address, 443, "tcp", sensor=f"{number:0128}")
        engine.alerts(flow_facts("ws://sensor", flow, said, number))
    report("alerts, memory with every bound reached", f"{tracemalloc.get_traced_memory()[0] / 2**20:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
