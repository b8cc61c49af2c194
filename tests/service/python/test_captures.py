"""`tapline.read` and `tapline.classify` give what the command gives, lazily, again where asked again, and leave nothing
behind where they are given up."""

import asyncio
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import tapline
from tapline.service.results import spool
from tests.paths import DATA
from tests.service.command.cli_runner import tapline as command

pytestmark = pytest.mark.whole

CAPTURES = DATA / "captures"
ANDROID = CAPTURES / "android.pcap"
SEVERAL = [
    ANDROID,
    CAPTURES / "telegram_videocall.pcapng",
    CAPTURES / "ndpi" / "ftp-start-tls.pcap",
    CAPTURES / "iot-sentinel" / "Aria",
]


def asked(path, *flags):
    """What the command writes of paths, as JSON."""
    result = command("classify", "--format", "json", *flags, *path, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def plain(value):
    return msgspec.json.decode(msgspec.json.encode(value))


def assert_same(results, expected):
    assert [plain(result.record) for result in results] == expected["flows"]
    assert [plain(trace) for trace in results.traces] == expected["traces"]
    assert plain(results.summary) == expected["summary"]


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--ports", "off", "--traces", "none"], {"ports": False, "traces": ()}),
        (["--cascade", "off", "--traces", "none"], {"cascade": False, "traces": ()}),
        (["--traces", "intrusion"], {"traces": "intrusion"}),
    ],
    ids=["as it is", "no ports, no traces", "no student", "one trace model"],
)
def test_records_are_those_of_the_command_to_the_bit(flags, options):
    names = [str(path) for path in SEVERAL]
    assert_same(tapline.classify(names, **options), asked(names, *flags))


@pytest.mark.zeek
@pytest.mark.skipif(shutil.which("zeek") is None, reason="no zeek on PATH")
def test_records_are_those_of_the_command_with_zeek(tmp_path, monkeypatch):
    seeds = tmp_path / "seeds"
    subprocess.run(["zeek", "--save-seeds", str(seeds), "-e", ""], check=True, cwd=tmp_path)
    monkeypatch.setenv(
        "ZEEK_SEED_FILE", str(seeds)
    )  # uids, and which flow ends first of those that end with the capture
    assert_same(tapline.classify(str(ANDROID), reader="zeek"), asked([str(ANDROID)], "--reader", "zeek"))


def test_models_that_are_loaded_give_the_same(checkpoint_dir, mac_traces_dir):
    by_directory = tapline.classify(ANDROID, model=checkpoint_dir, traces=[mac_traces_dir])
    loaded = tapline.classify(ANDROID, model=tapline.load(checkpoint_dir), traces=tapline.load(mac_traces_dir))
    assert list(loaded) == list(by_directory)
    assert list(loaded.traces) == list(by_directory.traces)
    assert len(loaded.traces) > 3


def test_verdicts_of_a_model_are_those_of_the_capture():
    model = tapline.load("flow-protocols", threads=1)
    expected = [result.verdict for result in tapline.classify(ANDROID, model=model, traces=())]
    found = model.predict(tapline.read(ANDROID))
    assert [verdict for verdict in found if verdict is not None] == expected


def test_iterating_again_reads_again():
    flows, results = tapline.read(ANDROID), tapline.classify(ANDROID, traces=())
    assert [flow.uid for flow in flows] == [flow.uid for flow in flows]
    assert list(results) == list(results)
    assert (flows.packets, flows.skipped, flows.warning) == (500, {"not IP": 25}, None)
    assert (len(list(flows)), flows.inputs[0].flows) == (69, 69)


def test_traces_and_summary_classify_where_nobody_has():
    results = tapline.classify(ANDROID)
    assert results.summary.classified == 66
    assert len(results.traces) == sum(entry.traces for entry in results.summary.traces) > 0


def test_traces_beyond_memory_wait_on_disk(monkeypatch):
    expected = list(tapline.classify(ANDROID).traces)
    monkeypatch.setattr(spool, "_MEMORY_BYTES", 1000)
    monkeypatch.setattr(spool, "_PIECE_BYTES", 7)
    traces = tapline.classify(ANDROID).traces
    first, second = iter(traces), iter(traces)
    assert [next(each) for _ in expected for each in (first, second)] == [each for each in expected for _ in (0, 1)]
    assert len(expected) > 3


def test_a_directory_and_what_the_command_writes(tmp_path):
    (tmp_path / "below").mkdir()
    shutil.copy(ANDROID, tmp_path / "below" / "a.pcap")
    (tmp_path / "notes.txt").write_text("no capture")
    lines = tmp_path / "flows.ndjson"
    lines.write_text(command("features", ANDROID).stdout)
    flows = tapline.read(tmp_path / "below")
    with_payload = [flow for flow in flows if flow.payload_lengths]
    assert [flow.uid for flow in tapline.read(lines)] == [flow.uid for flow in with_payload]
    assert [entry.name for entry in flows.inputs] == [str(tmp_path / "below" / "a.pcap")]


@pytest.mark.parametrize("made", [b"", b"no capture at all", None], ids=["empty", "other", "missing"])
def test_what_cannot_be_read_is_told_in_the_words_of_the_command(tmp_path, made):
    path = tmp_path / "odd.pcap"
    if made is not None:
        path.write_bytes(made)
    said = command("classify", path).stderr.strip()
    for give in (tapline.read, lambda name: tapline.classify(name, traces=())):
        with pytest.raises(tapline.CaptureError) as raised:
            list(give(path))
        assert str(raised.value) == said.splitlines()[0]


def test_a_bad_input_among_others_may_be_skipped(tmp_path):
    bad = tmp_path / "bad.pcap"
    bad.write_bytes(b"no capture at all")
    for give in (tapline.read, lambda names, **options: tapline.classify(names, traces=(), **options)):
        flows = give([bad, ANDROID], on_error="skip")
        with pytest.warns(UserWarning, match=r"bad\.pcap: "):
            assert len(list(flows)) >= 66
        with pytest.raises(tapline.CaptureError, match=r"bad\.pcap: "):
            list(give([bad, ANDROID]))


def test_what_is_not_there_may_be_skipped(tmp_path):
    """A file, a directory without captures and a damaged capture of another one: each has its entry."""
    (tmp_path / "none").mkdir()
    (tmp_path / "some").mkdir()
    shutil.copy(ANDROID, tmp_path / "some" / "a.pcap")
    (tmp_path / "some" / "b.pcap").touch()
    paths = [tmp_path / "missing.pcap", tmp_path / "none", tmp_path / "some"]
    names = [str(path) for path in (*paths[:2], paths[2] / "a.pcap", paths[2] / "b.pcap")]
    for give in (tapline.read, lambda names, **options: tapline.classify(names, traces=(), **options)):
        flows = give(paths, on_error="skip")
        with pytest.warns(UserWarning, match="cannot read it|no capture|empty") as warned:
            assert len(list(flows)) >= 66
        inputs = flows.inputs if give is tapline.read else flows.summary.inputs
        assert [entry.name for entry in inputs] == names
        assert [f"{entry.name}: {entry.error}" for entry in inputs if entry.error] == [str(w.message) for w in warned]
        assert "No such file" in inputs[0].error
        assert "no capture in this directory" in inputs[1].error
        assert inputs[2].error is None
        with pytest.raises(tapline.CaptureError, match=r"missing\.pcap: cannot read it: No such file"):
            give(paths[:1])


def test_patterns_are_not_expanded_and_the_home_directory_is(tmp_path, monkeypatch):
    with pytest.raises(tapline.CaptureError, match=r"No such file or directory; .* glob\.glob"):
        tapline.read(tmp_path / "*.pcap")
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ANDROID, tmp_path / "a.pcap")
    flows = tapline.read("~/a.pcap")
    assert len(list(flows)) == 69
    assert flows.inputs[0].name == str(tmp_path / "a.pcap")


def test_a_cut_capture_is_read_as_far_as_it_goes_and_warned_of(tmp_path):
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(ANDROID.read_bytes()[:-5])
    flows = tapline.read(cut)
    with pytest.warns(UserWarning, match="cut.pcap: "):
        assert len(list(flows)) > 60
    assert flows.warning


def test_a_directory_without_a_capture_and_models_that_are_none(tmp_path, mac_traces_dir):
    with pytest.raises(tapline.CaptureError, match="no capture in this directory"):
        tapline.read(tmp_path)
    with pytest.raises(tapline.CheckpointError, match=r"neither the name of a model that ships \(flow-protocols, "):
        tapline.classify(ANDROID, model="flow-protocol")
    with pytest.raises(tapline.CheckpointError, match="neither the name of a trace model"):
        tapline.classify(ANDROID, traces=["iot"])
    with pytest.raises(tapline.CheckpointError, match="expected a flow checkpoint"):
        tapline.classify(ANDROID, model="iot-devices")
    with pytest.raises(tapline.CheckpointError, match="two trace models are called"):
        tapline.classify(ANDROID, traces=[mac_traces_dir, tapline.load(mac_traces_dir)])
    with pytest.raises(tapline.CheckpointError, match="give it alone"):
        tapline.classify(ANDROID, traces=["none", tapline.load(mac_traces_dir)])


def test_warnings_point_at_the_line_that_asked(tmp_path, checkpoint_dir):
    gone = tmp_path / "gone.pcap"
    flows = tapline.read(gone, on_error="skip")
    results = tapline.classify(gone, model=checkpoint_dir, traces=(), on_error="skip")
    model = tapline.load(checkpoint_dir)
    for ask in (
        lambda: list(flows),
        lambda: flows.to_pandas(),
        lambda: next(iter(flows), None),
        lambda: model.predict(flows),
        lambda: results.summary,  # as nobody has iterated yet
        lambda: list(results),
        lambda: results.to_pandas(),
        lambda: model.predict(results),
    ):
        with pytest.warns(UserWarning, match="cannot read it") as warned:
            ask()
        assert {each.filename for each in warned} == {__file__}


def test_what_inputs_and_results_say_of_themselves(checkpoint_dir):
    assert repr(tapline.read(ANDROID)) == f"<Flows of {ANDROID}>"
    assert repr(tapline.read([ANDROID] * 2)) == "<Flows of 2 inputs>"
    results = tapline.classify([ANDROID] * 2, model=checkpoint_dir, traces=())
    assert (repr(results), repr(results.traces)) == ("<Results of 2 inputs by random 1>", "<Traces: 0 verdicts>")


def open_files():
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this very listing
            found.add(str(path.readlink()))
    return found


def engine_threads():
    return {each for each in threading.enumerate() if "engine" in each.name or "encoder" in each.name}


def children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_what_is_given_up_halfway_leaves_nothing_behind(how, checkpoint_dir, mac_traces_dir):
    threads, processes = engine_threads(), children()
    flows, results = iter(tapline.read(ANDROID)), iter(tapline.classify(ANDROID, model=checkpoint_dir))
    assert next(flows) is not None
    assert next(results).verdict is not None
    assert str(ANDROID) in open_files()
    assert engine_threads() - threads
    if how == "closed":
        flows.close()
        results.close()
        assert str(ANDROID) not in open_files()
    del flows, results
    gc.collect()
    assert str(ANDROID) not in open_files()
    for thread in engine_threads() - threads:
        thread.join(30)
        assert not thread.is_alive()
    assert children() == processes


def test_it_works_in_a_running_event_loop_and_in_threads(checkpoint_dir):
    results = tapline.classify(ANDROID, model=checkpoint_dir, traces=())
    expected = list(results)

    async def main():
        return list(results)  # as in a notebook

    assert asyncio.run(main()) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: list(results), range(4))) == [expected] * 4


def test_standard_input_is_read_as_the_command_reads_it():
    code = "import tapline; print(len(list(tapline.read('-'))))"
    with ANDROID.open("rb") as file:
        found = subprocess.run([sys.executable, "-W", "error", "-c", code], stdin=file, capture_output=True, check=True)
    assert (found.stdout, found.stderr) == (b"69\n", b"")


def test_memory_while_iterating_does_not_follow_the_input(checkpoint_dir):
    held = []
    tracemalloc.start()
    try:
        for result in tapline.classify([ANDROID] * 12, model=checkpoint_dir, traces=()):
            if len(held) % 66 == 0:
                gc.collect()  # of the input before; otherwise the garbage collector chooses when
            held.append(tracemalloc.get_traced_memory()[0])
            del result
    finally:
        tracemalloc.stop()
    assert len(held) == 12 * 66
    assert max(held[-66:]) - max(held[66:132]) < 200_000  # the flows of the inputs between take 2 MB
