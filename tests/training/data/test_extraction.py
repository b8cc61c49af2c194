"""Feature directories: labels from folders and corrections, every kind of input, resumption, killed workers, memory."""

import json
import os
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from tapline.models.flow import FLOW_FORMAT_VERSION
from tapline.service.sources.capture import ReadOptions, read_capture
from tapline.training.commands.tapline_train import app
from tapline.training.data import extraction as extraction
from tapline.training.data.extraction import ExtractSettings, extract
from tapline.training.data.labels import Labels
from tapline.training.data.origins import ExtractError, find_origins
from tapline.training.data.parquet import SCHEMA, Sample, read_table, write_table
from tapline.training.data.samples import Manifest as ManifestRecord
from tapline.training.data.samples import SampleError, Shard, read_manifest, read_samples, write_manifest
from tapline.training.data.store import store
from tests.conftest import make_flows
from tests.paths import ROOT

pytestmark = pytest.mark.whole

IOT = ROOT / "tests" / "data" / "captures" / "iot-sentinel"
PROTOCOLS = ROOT / "tests" / "data" / "protocols"


def by_label(directory):
    counts = {}
    for sample in read_samples(directory):
        counts[sample.label] = counts.get(sample.label, 0) + 1
    return counts


def test_the_folder_is_the_label(tmp_path):
    extract(find_origins([IOT]), tmp_path / "out", ExtractSettings(Labels(from_folder=True)))
    assert set(by_label(tmp_path / "out")) == {"Aria", "D-LinkDayCam", "EdimaxCam1"}


def test_what_is_written_is_what_was_read(tmp_path):
    origins = find_origins([IOT])
    extract(origins, tmp_path / "out", ExtractSettings(heads="full"))
    read = [
        flow
        for origin in origins
        for flow in read_capture(origin.path, ReadOptions(heads="full"))
        if flow.payload_lengths
    ]
    kept = list(read_samples(tmp_path / "out"))
    assert [sample.flow for sample in kept] == read
    assert any(flow.heads for flow in read)
    assert {sample.label for sample in kept} == {None}


def test_a_correction_goes_before_every_other_label(tmp_path):
    extract(find_origins([IOT]), tmp_path / "before", ExtractSettings(Labels(from_folder=True)))
    first = next(iter(read_samples(tmp_path / "before")))
    table = tmp_path / "corrections.csv"
    table.write_text(f"uid,label,by\n{first.flow.uid},Printer,me\nCnowhere,Printer,me\n")
    arguments = ["extract", IOT, "--label-from-folder", "--corrections", table, "--out", tmp_path / "after"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    before, after = by_label(tmp_path / "before"), by_label(tmp_path / "after")
    assert after.pop("Printer") == 1
    assert sum(before.values()) - sum(after.values()) == 1
    assert read_manifest(tmp_path / "after").left_out["correction of a flow that is not there"] == 1


def test_flow_lines_are_read_as_the_capture_they_came_from(tmp_path):
    capture = next(IOT.rglob("*.pcap"))
    lines = tmp_path / "in" / "flows.ndjson"
    lines.parent.mkdir()
    arguments = [sys.executable, "-c", "from tapline.service.command.cli import main; main()", "features", str(capture)]
    lines.write_bytes(subprocess.run(arguments, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout)
    extract(find_origins([lines.parent]), tmp_path / "lines")
    extract(find_origins([capture]), tmp_path / "capture")
    flows = [
        {(sample.flow.uid, tuple(sample.flow.payload_lengths), sample.flow.orig_bytes) for sample in read_samples(out)}
        for out in (tmp_path / "lines", tmp_path / "capture")
    ]
    assert flows[0] == flows[1]
    assert flows[0]


def test_shards_hold_no_names_of_servers(tmp_path):
    (flow,) = make_flows(1)
    named = msgspec.structs.replace(flow, server_name="a.example")
    write_table(tmp_path / "shard.parquet", [Sample("c", "a.pcap", "dns", named)])
    assert "server_name" not in SCHEMA.names
    assert [sample.flow for sample in read_table(tmp_path / "shard.parquet")] == [flow]


def test_an_interrupted_extraction_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "SHARD_ORIGINS", 1)
    origins = find_origins([IOT])
    out = tmp_path / "out"

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(origins, out, ExtractSettings(processes=1), stop)
    partial = tmp_path / ".out.partial"
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.parquet")}
    assert done
    assert not out.exists()
    counts = []
    manifest = extract(origins, out, ExtractSettings(processes=1), counts.append)
    assert sum(counts) == len(origins) == 3
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done
    assert len(manifest.shards) == 3
    assert not partial.exists()


def test_other_settings_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "SHARD_ORIGINS", 1)
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "plan.json").write_text("of other settings")
    (partial / "samples-00000.parquet").write_text("stale")
    extract(find_origins([IOT]), tmp_path / "out")
    assert len(list(read_samples(tmp_path / "out"))) > 10


def _die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_in_one_sentence_and_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    extract(find_origins([IOT]), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(extraction, "write_group", _die)
    with pytest.raises(ExtractError, match=r"was killed .* run the same command again"):
        extract(find_origins([IOT]), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_half_of_a_killed_process_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "write_group", _die)
    with pytest.raises(ExtractError, match="was killed"):
        extract(find_origins([IOT]), tmp_path / "out")
    (tmp_path / ".out.partial" / "samples-00000.parquet.77").write_bytes(b"half")
    monkeypatch.undo()
    extract(find_origins([IOT]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "samples-00000.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_ends_in_one_sentence_and_leaves_what_was_there(tmp_path):
    out = tmp_path / "out"
    extract(find_origins([IOT]), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    command = f"ulimit -f 4; exec {sys.executable} -m tapline.training extract {IOT} --heads full --out {out}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "cannot write the features (File too large); 0 of 1 shards are done: make room" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_label_without_a_flow_is_said(tmp_path):
    root = tmp_path / "captures"
    for label in ("camera", "silent"):
        (root / label).mkdir(parents=True)
    capture = next(IOT.rglob("*.pcap"))
    (root / "camera" / "a.pcap").write_bytes(capture.read_bytes())
    (root / "silent" / "b.pcap").write_bytes(capture.read_bytes()[:24])  # no packet
    arguments = ["extract", str(root), "--label-from-folder", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert "labels without a flow: silent" in result.output
    assert list(read_manifest(tmp_path / "out").labels) == ["camera"]


def test_a_corrupt_shard_is_named(tmp_path):
    out = tmp_path / "out"
    extract(find_origins([IOT]), out)
    shard = out / read_manifest(out).shards[0].name
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SampleError, match=f"{shard.name}: damaged"):
        list(read_samples(out))
    shard.write_bytes(b"PAR1 not really PAR1")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = extraction.file_sha256(shard)
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SampleError, match="not a shard of samples"):
        list(read_samples(out))


def test_features_of_an_older_form_are_refused(tmp_path):
    manifest = {"shards": [], "captures": 0, "samples": 0, "labelled": 0, "left_out": {}, "warnings": {}}
    (tmp_path / "manifest.json").write_text(
        json.dumps({**manifest, "settings": {}, "flow_format_version": FLOW_FORMAT_VERSION})
    )
    with pytest.raises(SampleError, match="features format 1, this tapline reads 2: extract again"):
        read_manifest(tmp_path)


def test_stored_flows_are_those_that_were_put_in(tmp_path):
    flows = make_flows(60)
    samples = [Sample("c", f"{n % 7}.pcap", "ab"[n % 2] if n % 5 else None, flow) for n, flow in enumerate(flows)]
    stored = store(samples, tmp_path)
    assert list(tmp_path.iterdir()) == []
    seen = [(flow.payload_lengths, flow.orig_bytes, flow.resp_bytes, flow.up, flow.down) for flow in stored.flows]
    assert seen == [(f.payload_lengths, f.orig_bytes, f.resp_bytes, f.up, f.down) for f in flows]
    some = stored.take(stored.with_label(["b"]) & stored.in_captures(["c/3.pcap"]))
    assert set(some.captures_of()) == {"c/3.pcap"}
    assert set(some.labels_of()) == {"b"}
    assert some.flows[0].payload_lengths == flows[int(some.flows.rows[0])].payload_lengths
    assert sum(sum(counts.values()) for counts in stored.held().values()) == 60
    kinds = stored.flows.kinds(8, 16)
    assert len(np.unique(kinds)) == len(
        {(tuple(f.payload_lengths[:8]), f.orig_bytes[:16], f.resp_bytes[:16]) for f in flows}
    )


_MEMORY = """
import resource, sys
from pathlib import Path
from tapline.training.data.store import open_samples
from tapline.training.loop.config import TrainingConfig
from tapline.training.data.batches import draw_weights, training_batches
from tapline.training.flows.pretrain import AUGMENTATION
import msgspec
import numpy as np
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples = open_samples([Path(sys.argv[1])], Path(sys.argv[2]))
weights = draw_weights(samples.corpora(), samples.captures, 1.0, 0.6)
config = TrainingConfig()
rng = np.random.default_rng(0)
for batch in training_batches(samples.flows, weights, 2048, 32, config.features, AUGMENTATION, rng):
    pass
print(len(samples), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_corpus_is_never_held_in_memory(tmp_path):
    """200,000 flows of 600 bytes each: 150 MB of flows, and several times that as Python objects."""
    features = tmp_path / "features"
    features.mkdir()
    flows = make_flows(500)
    for flow in flows:
        flow.orig_bytes = flow.resp_bytes = os.urandom(256)

    def samples():
        for number in range(50_000):
            yield Sample("c", f"{number // 1000}.pcap", None, flows[number % 500])

    shards = []
    for part in range(4):
        path = features / f"samples-{part:05d}.parquet"
        count = write_table(path, samples())
        shards.append(Shard(path.name, count, path.stat().st_size, extraction.file_sha256(path)))
    write_manifest(features, ManifestRecord(shards, 50, 200_000, 0, {}, {}, {}))
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(features), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True, env=environment,
    )  # fmt: skip
    count, grown_kib = map(int, done.stdout.split())
    assert count == 200_000
    assert grown_kib < 200 * 1024


def test_two_folders_of_one_name_are_refused(tmp_path):
    for site in ("a", "b"):
        (tmp_path / site / "pcap").mkdir(parents=True)
        (tmp_path / site / "pcap" / "1.pcap").write_bytes(next(IOT.rglob("*.pcap")).read_bytes())
    with pytest.raises(ExtractError, match="of one name, so captures in them could not be told apart"):
        find_origins([tmp_path / "a" / "pcap", tmp_path / "b" / "pcap"])
    assert [origin.capture for origin in find_origins([tmp_path])] == ["a/pcap/1.pcap", "b/pcap/1.pcap"]
