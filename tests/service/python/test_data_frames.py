"""Tables of flows and traces hold what the records hold, in proper types, and say what is to be installed."""

import subprocess
import sys

import msgspec
import pandas as pd
import pyarrow as pa
import pytest

import tapline
from tapline.installation import install_command
from tapline.service.python import data_frames
from tapline.service.python.data_frames import flow_table
from tapline.service.python.offline import Result
from tapline.service.results.writers import CSV_COLUMNS, TRACE_CSV_COLUMNS
from tests.conftest import make_flows
from tests.paths import DATA, ROOT

ANDROID = DATA / "captures" / "android.pcap"
OTHERS = {"verdict", "payload_lengths", "orig_bytes", "resp_bytes", "heads", "heads_kind", "link_type"}
TOKENS = {"ps_tokens", "bytes_tokens", "bytes_types"}


@pytest.fixture(scope="module")
def results():
    return tapline.classify(ANDROID)


def test_columns_are_those_of_the_records(results):
    table = results.to_arrow(alternatives=True, lengths=True, content=True)
    rows = table.to_pylist()
    records = [result.record for result in results]
    assert len(rows) == len(records) == 66
    for row, record in zip(rows, records, strict=True):
        for name in set(record.__struct_fields__) - OTHERS - TOKENS:
            assert row[name] == getattr(record, name), name
        for name in ("label", "nearest", "confidence", "unknown", "model", "version", "final", "port_label"):
            assert row[name] == getattr(record.verdict, name), name
        assert row["unexpected_port"] is record.verdict.unexpected_port
        assert row["payload_lengths"] == record.payload_lengths
        assert (row["orig_bytes"].hex(), row["resp_bytes"].hex()) == (record.orig_bytes, record.resp_bytes)
        others = zip(row["alternatives"], row["alternative_confidences"], strict=True)
        assert list(others) == [(each.label, each.confidence) for each in record.verdict.alternatives]
        assert row["start"].timestamp() == pytest.approx(record.start_us / 1e6, abs=1e-6)
    assert set(CSV_COLUMNS) <= set(table.column_names)


def test_types_of_a_frame(results):
    frame = results.to_pandas()
    assert str(frame.start.dtype) == "datetime64[us, UTC]"
    assert {"label", "nearest", "proto", "input"} <= set(frame.columns[frame.dtypes == "category"])
    assert (frame.unknown.dtype, frame.unexpected_port.dtype) == (pd.BooleanDtype(), pd.BooleanDtype())
    assert (frame.confidence.dtype, frame.orig_p.dtype, frame.orig_ip_bytes.dtype) == ("float64", "uint16", "int64")
    assert frame.groupby("label", observed=True).size().to_dict() == {
        entry.label: entry.flows for entry in results.summary.labels
    }
    assert frame[~frame.unknown].confidence.min() > 0
    assert not {"payload_lengths", "orig_bytes", "alternatives"} & set(frame.columns)


def test_traces(results):
    frame = results.traces.to_pandas(alternatives=True)
    traces = list(results.traces)
    assert set(TRACE_CSV_COLUMNS) <= set(frame.columns)
    assert frame.label.tolist() == [trace.verdict.label for trace in traces]
    assert [list(uids) for uids in frame.top_uids] == [[flow.uid for flow in trace.top_flows] for trace in traces]
    assert [list(shares) for shares in frame.top_shares] == [[each.share for each in it.top_flows] for it in traces]
    assert frame.suspicious.isna().tolist() == [trace.suspicious is None for trace in traces]
    assert str(frame.end.dtype) == "datetime64[us, UTC]"


def test_flows_without_verdicts(results):
    frame = tapline.read(ANDROID).to_pandas(lengths=True)
    assert len(frame) == 69
    assert "label" not in frame
    assert frame.payload_lengths.map(len).sum() == frame.up.sum() + frame.down.sum()


def test_a_flow_on_which_the_engine_failed_has_no_verdict():
    flows = make_flows(2)
    verdict = tapline.Verdict("dns", "dns", 0.5, False, [], "random", "1")
    table = flow_table([Result(flows[0], None, "a"), Result(flows[1], verdict, "a")], alternatives=True)
    assert table["label"].to_pylist() == [None, "dns"]
    assert table["unexpected_port"].to_pylist() == [None, None]
    assert table["alternatives"].to_pylist() == [None, []]


def test_nothing_is_a_table_without_rows():
    table = flow_table([])
    assert (table.num_rows, table.schema.field("start").type) == (0, pa.timestamp("us", tz="UTC"))


def test_chunks_are_one_table(monkeypatch, results):
    whole = results.to_arrow()
    monkeypatch.setattr(data_frames, "CHUNK_ROWS", 7)
    cut = results.to_arrow()
    assert cut.to_pylist() == whole.to_pylist()
    assert cut["label"].num_chunks == 10
    assert cut.to_pandas().label.astype(str).tolist() == whole.to_pandas().label.astype(str).tolist()


@pytest.mark.parametrize(("missing", "call"), [("pyarrow", "to_arrow"), ("pandas", "to_pandas")])
def test_what_is_missing_is_told_before_anything_is_read(missing, call):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; import tapline; "
        f"flows = tapline.read({str(ANDROID)!r}); print(len(list(flows)))\n"
        f"flows.inputs = None\ntry:\n    flows.{call}()\nexcept ImportError as error:\n    print(error, flows.inputs)"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.splitlines() == [
        "69",
        f"a table needs {missing}, of the extra `pandas`: {install_command('pandas')} None",
    ]


def test_a_record_survives_json(results):
    record = next(iter(results)).record
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
