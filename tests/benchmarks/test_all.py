"""One run writes both tables: what is missing is said, what was measured elsewhere stays, a trial writes nothing."""

import importlib.util
import subprocess
import sys

import pytest

from tapline.service.sources.capture import CaptureReader
from tests.paths import DATA, ROOT

SCRIPT = ROOT / "benchmarks" / "all.py"
ANDROID = DATA / "captures" / "android.pcap"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


def module(name, monkeypatch):
    """A script of the benchmarks, which import each other by their folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, found)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def everything(monkeypatch):
    return module("all", monkeypatch)


def test_both_pages_have_the_marks(everything):
    for page in PAGES:
        text = page.read_text()
        assert 0 < text.index(everything.BEGIN) < text.index(everything.END)


def test_a_table_takes_the_place_of_the_one_before(everything, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{everything.BEGIN}\nold\n{everything.END}\nafter\n")
    everything.write_between(page, "| new |")
    assert page.read_text() == f"before\n{everything.BEGIN}\n| new |\n{everything.END}\nafter\n"
    page.write_text(f"{everything.END}\n{everything.BEGIN}\n")
    with pytest.raises(ValueError, match="expected <!-- table"):
        everything.write_between(page, "| new |")


def test_rows_of_another_machine_stay_and_name_it(everything, tmp_path, monkeypatch):
    for name in ("PAGE", "FRONT"):
        page = tmp_path / f"{name}.md"
        page.write_text(f"{everything.BEGIN}\n{everything.END}\n")
        monkeypatch.setattr(everything, name, page)
    monkeypatch.setattr(everything, "RESULTS", tmp_path / "results.json")
    kept = {
        "gpu": everything.Result("gpu", "a card", "2026-01-02", [["tokens", "5 | 6"]]),
        "load": everything.Result("load", "a desk", "2026-01-01", [["rate", "7"]], [["rate", "-", "7"]]),
    }
    everything.write(kept)
    assert everything.kept_results() == kept
    text = everything.PAGE.read_text()
    assert "machine A: a card; machine B: a desk" in text
    assert "| tokens | `gpu` | 5 \\| 6 | A, 2026-01-02 |" in text
    assert "| rate | `load` | 7 | B, 2026-01-01 |" in text
    assert "| rate | - | 7 |\n\nMeasured 2026-01-01, a desk.\n" in everything.FRONT.read_text()


def test_what_a_measurement_lacks(everything):
    lacks = [
        everything.Measurement("one", "none", [], 1),
        everything.Measurement("two", "load", [], 1, ("no-such-program",)),
        everything.Measurement("three", "load", [], 1, modules=("no_such_module",)),
        everything.Measurement("four", "load", [], 1, ("sh",), ("json",)),
    ]
    assert [each.lacks for each in lacks] == ["none.py", "no-such-program", "no_such_module", None]


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [("raise SystemExit('no\\nroom')", 60, "status 1: room"), ("import time; time.sleep(60)", 1, "took more than 1 s")],
)
def test_what_fails_has_a_row_and_keeps_those_it_gave(everything, tmp_path, monkeypatch, code, seconds, said):
    monkeypatch.setattr(everything, "HERE", tmp_path)
    (tmp_path / "bad.py").write_text(f"print('result | what | well', flush=True)\n{code}\n")
    found = everything.run(everything.Measurement("bad", "bad", [], 1), seconds)
    assert found.rows == [["what", "well"], ["bad", f"failed in this run: {said}"]]


def test_the_first_packets_of_a_capture(everything, tmp_path):
    small = everything.first_packets(ANDROID, 20, tmp_path / "small.pcap")
    reader = CaptureReader(small)
    list(reader)
    assert reader.packets == 20
    (tmp_path / "none.pcap").write_bytes(b"no capture at all, to be sure")
    with pytest.raises(SystemExit, match="expected a pcap file"):
        everything.first_packets(tmp_path / "none.pcap", 20, tmp_path / "small.pcap")


def test_flows_of_a_folder_come_in_the_same_order(monkeypatch, tmp_path):
    load = module("load", monkeypatch)
    (tmp_path / "none.pcap").write_bytes(b"no capture")
    (tmp_path / "android.pcap").symlink_to(ANDROID)
    one, two = (load.real_flows([tmp_path]) for _ in range(2))
    assert [flow.uid for flow in one] == [flow.uid for flow in two]
    assert [flow.uid for flow in one] == [flow.uid for flow in load.real_flows([ANDROID])]
    assert len(one) == 66


@pytest.mark.whole
@pytest.mark.slow
def test_a_trial_measures_says_what_is_missing_and_writes_nothing(tmp_path):
    (tmp_path / "android.pcap").symlink_to(ANDROID)
    before = [page.read_bytes() for page in PAGES]
    words = ["--captures", tmp_path, "--big", ANDROID, "--only", "rivals,load,idle", "--quick"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words, "--nfstream-python", "false"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "missing  NFStream, as it comes: there is no nfstream here" in done.stdout
    assert "failed in this run" not in done.stdout
    table = done.stdout[done.stdout.index("By `all.py`; machine A: ") :]
    for row in (
        "| android-10k.pcap: tapline classify: flow verdicts | `rivals` | ",
        "| live path saturated, flow-protocols, 66 real flows | `load` | **",
        "| delivered in time at 300% of the saturated rate, flow-protocols, 66 real flows | `load` | ",
        "| memory of a service that waits, every checkpoint that ships loaded, without pages and history | `idle` | **",
        "\n\n| | beside | |\n",
    ):
        assert row in table
    assert [page.read_bytes() for page in PAGES] == before
