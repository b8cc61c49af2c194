"""Whether the native plugin finds in captures what the scripts find, flow by flow.

    python -m tests.zeek.parity CAPTURE... --plugin DIR [--bare] [--kept DIR] [--list] [Tapline::NAME=VALUE ...]

CAPTURE is a file, plain or gzip, or a folder of them. Zeek reads each twice, with the package's scripts alone and with
the plugin built in DIR, by the same seeds, so that connections have the same uid. Every field of `tapline_flow.log`,
`ps.log` and `raw.log` is compared, the package's counters, Zeek's exit status and what it says. `--bare`: without
Zeek's own scripts, which starts three times as fast; then services are not recognised. `--kept`: a folder where the
scripts' side is kept for the next time; it is used again while capture, scripts and arguments are the same.

Ends with status 1 where there is a difference that is not in `EXPLAINED`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.paths import ROOT

SCRIPTS = ROOT / "zeek" / "scripts"
LOGS = ("tapline_flow", "ps", "raw")
NO_CAPTURES = (".csv", ".md", ".txt")
TIMEOUT_SECONDS = 300
NATIVE = "Tapline::Native"
COUNTERS = """
event zeek_done() &priority=-100
	{
	print fmt("counters %s", to_json(Tapline::counters));
	print fmt("native %s", Tapline::native);
	}
"""

WARNINGS_OF_SCRIPTS = re.compile(r"^warning in .*(does not have any callers|cannot be invoked)")
"""What Zeek says of the scripts when it starts, whatever the capture."""

EXPLAINED = {
    r"teredo-udp-in-udp\.pcap: (tapline_flow: (payload_lengths|orig_bytes|heads)|ps: ps|raw: fwd_raw)": (
        "a packet in a tunnel that is of the same connection as the packet around it reaches Zeek's analyzers first"
    ),
}
"""Differences that are not faults, as regular expressions for the capture's name and the kind, and why not."""


@dataclass
class Side:
    """What one way of extraction says of a capture: of each log its lines by uid, the counters, status and messages."""

    status: int = 0
    said: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    logs: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)


def captures_of(paths: Sequence[Path]) -> list[Path]:
    """The files of all folders, but for those that are no captures by their name."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in files if file.is_file() and not file.name.endswith(NO_CAPTURES)]


def read_log(path: Path) -> dict[str, dict[str, object]]:
    """The lines of a JSON log by uid, in their order."""
    lines = path.read_text(errors="surrogateescape").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {str(row["uid"]): row for row in rows}


def run_zeek(capture: Path, plugin: Path | None, bare: bool, options: Sequence[str]) -> Side:
    """Zeek on a capture, by the scripts or by a plugin."""
    environment = {name: value for name, value in os.environ.items() if name != "ZEEK_PLUGIN_PATH"}
    if plugin is not None:
        environment["ZEEK_PLUGIN_PATH"] = str(plugin)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "counters.zeek").write_text(COUNTERS)
        command = ["zeek", "-D", *(["-b"] if bare else []), "-C", "-r", str(capture)]
        command += [NATIVE] if bare and plugin is not None else []
        command += [str(SCRIPTS / "offline.zeek"), str(SCRIPTS / "published_logs.zeek"), "counters.zeek"]
        command += ["Tapline::other_logs=F", "LogAscii::use_json=T", *options]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace",
                timeout=TIMEOUT_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Side(status=124)
        side = Side(done.returncode)
        for line in done.stdout.splitlines():
            if line.startswith("counters "):
                side.counters = json.loads(line.removeprefix("counters "))
            if line.startswith("native ") and (line == "native T") != (plugin is not None):
                raise SystemExit(f"the plugin is {'not ' if plugin else ''}in use")
        said = [line.replace(str(capture), "CAPTURE") for line in done.stderr.splitlines()]
        side.said = [line for line in said if line and not WARNINGS_OF_SCRIPTS.search(line)]
        side.logs = {name: read_log(folder / f"{name}.log") for name in LOGS}
        return side


def differences(scripts: Side, native: Side) -> Iterator[tuple[str, str]]:
    """Every difference: its kind, and which flow and values it is about."""
    if scripts.status != native.status:
        yield "exit status", f"{scripts.status} {native.status}"
    if sorted(scripts.said) != sorted(native.said):
        yield "messages", f"{sorted(set(scripts.said) ^ set(native.said))[:2]}"
    for name in scripts.counters.keys() | native.counters.keys():
        if scripts.counters.get(name) != native.counters.get(name):
            yield f"counter {name}", f"{scripts.counters.get(name)} {native.counters.get(name)}"
    for log in LOGS:
        ours, theirs = scripts.logs.get(log, {}), native.logs.get(log, {})
        for uid in ours.keys() | theirs.keys():
            if uid not in theirs or uid not in ours:
                yield f"{log}: only by the {'scripts' if uid in ours else 'plugin'}", str(ours.get(uid) or theirs[uid])
                continue
            for name in ours[uid].keys() | theirs[uid].keys():
                one, other = ours[uid].get(name), theirs[uid].get(name)
                if one != other:
                    yield f"{log}: {name}", f"{uid} {one} {other}"


def is_explained(capture: Path, kind: str) -> bool:
    """Whether differences of this kind are no fault on this capture."""
    return any(re.fullmatch(pattern, f"{capture.name}: {kind}") for pattern in EXPLAINED)


class Parity:
    """The comparison of both ways, capture by capture."""

    def __init__(self, plugin: Path, bare: bool = False, kept: Path | None = None, options: Sequence[str] = ()) -> None:
        self._plugin, self._bare, self._kept, self._options = plugin, bare, kept, options
        made = hashlib.sha256(repr((bare, list(options), COUNTERS)).encode())
        for script in sorted(SCRIPTS.glob("*.zeek")):
            made.update(script.read_bytes())
        self._made = made

    def compare(self, capture: Path) -> tuple[Side, list[tuple[str, str]]]:
        """The scripts' side of a capture, and what the plugin's has otherwise."""
        with tempfile.TemporaryDirectory() as folder:
            plain = capture
            if capture.suffix == ".gz":
                plain = Path(folder) / "capture"
                plain.write_bytes(gzip.decompress(capture.read_bytes()))
            scripts = self._scripts_side(plain)
            native = run_zeek(plain, self._plugin, self._bare, self._options)
        return scripts, list(differences(scripts, native))

    def _scripts_side(self, capture: Path) -> Side:
        if self._kept is None:
            return run_zeek(capture, None, self._bare, self._options)
        made = self._made.copy()
        made.update(capture.read_bytes())
        file = self._kept / f"{made.hexdigest()}.json.gz"
        if file.exists():
            return Side(**json.loads(gzip.decompress(file.read_bytes())))
        side = run_zeek(capture, None, self._bare, self._options)
        file.write_bytes(gzip.compress(json.dumps(asdict(side)).encode(), 1))
        return side


def main() -> None:
    """Compare, and count what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="+", help="files, folders, and options of the package for both sides")
    parser.add_argument("--plugin", type=Path, required=True)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--list", action="store_true", help="name every difference")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_intermixed_args()
    options = [word for word in given.captures if "::" in word]
    captures = captures_of([Path(word).resolve() for word in given.captures if "::" not in word])
    if given.kept:
        given.kept.mkdir(parents=True, exist_ok=True)
    parity = Parity(given.plugin.resolve(), given.bare, given.kept, options)
    kinds: Counter[str] = Counter()
    where: dict[str, set[str]] = {}
    flows = refused = differing = faults = 0
    with ThreadPoolExecutor(given.processes) as pool:
        for capture, (scripts, found) in zip(captures, pool.map(parity.compare, captures), strict=True):
            flows += len(scripts.logs.get("tapline_flow", {}))
            refused += scripts.status != 0
            differing += bool(found)
            for kind, detail in found:
                known = is_explained(capture, kind)
                faults += not known
                label = f"{kind}  (explained)" if known else kind
                kinds[label] += 1
                where.setdefault(label, set()).add(str(capture))
                if given.list:
                    print(f"  {capture}: {label}: {detail[:400]}", flush=True)
    print(f"{len(captures)} captures, {refused} that Zeek refuses, {flows} flows; {differing} captures differ")
    for label, count in kinds.most_common():
        print(f"{count:8d} in {len(where[label])} captures  {label}  {min(where[label])}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
