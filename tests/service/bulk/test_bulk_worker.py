"""A worker writes the rows that `tapline.classify` gives, once, whatever happens to those before it."""

import shutil

import pytest

pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")

import tapline  # noqa: E402
from tapline.service.bulk import bulk_worker  # noqa: E402
from tapline.service.bulk.bulk_records import BulkError, made_with  # noqa: E402
from tapline.service.bulk.bulk_sources import find_captures  # noqa: E402
from tapline.service.bulk.bulk_store import BulkStore  # noqa: E402
from tapline.service.bulk.bulk_worker import BulkWorker, WorkerOptions  # noqa: E402
from tests.paths import DATA  # noqa: E402

ANDROID = DATA / "captures" / "android.pcap"


@pytest.fixture(scope="module")
def options(checkpoint_dir, trace_checkpoint_dir):
    """Options of workers that write into `out`, in this `run`."""
    made = made_with(checkpoint_dir, [trace_checkpoint_dir], ports=True, reader="auto")

    def options(out, run="one"):
        BulkStore(out).begin(made)
        return WorkerOptions(run, out, made, checkpoint_dir, (trace_checkpoint_dir,), "onnx", 1)

    return options


@pytest.fixture
def expected(checkpoint_dir, trace_checkpoint_dir):
    """The tables of flows and of traces that Python gives of captures."""

    def expected(*paths):
        results = tapline.classify(paths, model=checkpoint_dir, traces=[trace_checkpoint_dir])
        return results.to_arrow(), results.traces.to_arrow()

    return expected


def tables(out):
    """What a reader finds."""
    found = [pq.read_table(f"{out}/{name}") for name in ("flows", "traces")]
    return [table.drop_columns("capture").unify_dictionaries() for table in found]


def test_rows_are_those_of_classify(options, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk_worker, "GROUP_ROWS", 10)  # so that a file has several groups
    (capture,) = find_captures([str(ANDROID)])
    account = BulkWorker(options(str(tmp_path))).capture(capture)
    flows, traces = expected(ANDROID)
    assert tables(tmp_path) == [flows, traces]
    assert (account.error, account.rows, account.traces) == (None, len(flows), len(traces))
    file = pq.ParquetFile(tmp_path / "flows" / f"{capture.key}.parquet")
    assert file.metadata.num_row_groups == -(-len(flows) // 10)
    assert file.read(["capture"])["capture"].unique().to_pylist() == [str(ANDROID)]


def test_from_and_to_a_url(options, expected, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/archive/a.pcap", ANDROID.read_bytes())
    (capture,) = find_captures(["memory://archive"])
    account = BulkWorker(options("memory://out")).capture(capture)
    assert account.error is None
    memory.get("/out", str(tmp_path / "out"), recursive=True)
    memory.store.clear()
    flows, _ = tables(tmp_path / "out")
    assert set(flows["input"].to_pylist()) == {"memory:///archive/a.pcap"}
    assert flows.drop_columns("input") == expected(ANDROID)[0].drop_columns("input")


def test_what_is_done_is_not_done_again(options, tmp_path, monkeypatch):
    (capture,) = find_captures([str(ANDROID)])
    account = BulkWorker(options(str(tmp_path))).capture(capture)
    monkeypatch.setattr(bulk_worker, "open_capture", lambda *_: pytest.fail("read again"))
    assert BulkWorker(options(str(tmp_path), "two")).capture(capture) == account


def test_a_capture_that_changed_replaces_its_rows(options, expected, tmp_path):
    path = tmp_path / "a.pcap"
    worker = BulkWorker(options(str(tmp_path / "out")))
    for source in (ANDROID, DATA / "captures" / "telegram_videocall.pcapng"):
        shutil.copy(source, path)
        (capture,) = find_captures([str(path)])
        assert worker.capture(capture).error is None
    assert tables(tmp_path / "out") == list(expected(path))
    path.write_text("no capture any more")
    (capture,) = find_captures([str(path)])
    assert "expected a pcap" in worker.capture(capture).error
    assert list((tmp_path / "out" / "flows").iterdir()) == []


def test_a_reader_that_fails_costs_its_capture_alone(options, tmp_path, monkeypatch):
    (capture,) = find_captures([str(ANDROID)])
    worker = BulkWorker(options(str(tmp_path)))

    def failing(*_):
        raise RuntimeError("first line\nsecond")

    with monkeypatch.context() as patch:
        patch.setattr(bulk_worker, "open_capture", failing)
        assert worker.capture(capture).error == "RuntimeError: first line"
    assert not any(path.is_file() for path in (tmp_path / "flows").iterdir())
    assert list((tmp_path / ".parts").iterdir()) == []
    assert worker.capture(capture).error is None


def test_a_capture_that_kills_its_workers_is_given_up(options, tmp_path, monkeypatch):
    (capture,) = find_captures([str(ANDROID)])

    class Killed(BaseException):
        """Stands for the end of the process."""

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(bulk_worker, "open_capture", killed)
        for _ in range(bulk_worker.TRIES):
            with pytest.raises(Killed):
                BulkWorker(options(str(tmp_path))).capture(capture)
        assert BulkStore(str(tmp_path)).account(capture.key).error == "its worker ended before it was done"
        account = BulkWorker(options(str(tmp_path))).capture(capture)
    assert account.error.startswith("its worker died, 3 times")
    assert BulkWorker(options(str(tmp_path), "two")).capture(capture).error is None  # another run tries again


def test_a_full_disk_is_no_fault_of_a_capture(options, tmp_path, monkeypatch):
    (capture,) = find_captures([str(ANDROID)])
    worker = BulkWorker(options(str(tmp_path)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bulk_worker.pq.ParquetWriter, "write_table", full)
    with pytest.raises(BulkError, match=r"cannot write traces/android.*: No space left on device"):
        worker.capture(capture)


def test_a_machine_with_other_models_is_told(options, context_dir, tmp_path):
    other = options(str(tmp_path))
    changed = WorkerOptions("one", other.out, other.made, context_dir, other.traces, "onnx", 1)
    with pytest.raises(BulkError, match=r"a machine of the cluster has other models .*: install the same on all"):
        BulkWorker(changed)
