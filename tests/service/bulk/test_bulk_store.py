"""The directory of a bulk run: files appear whole or not at all, and what was made otherwise is refused."""

import pytest

pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")

from msgspec.structs import replace  # noqa: E402

from tapline.service.bulk.bulk_records import BulkError, CaptureAccount, Made, ModelUsed  # noqa: E402
from tapline.service.bulk.bulk_store import BulkStore  # noqa: E402

MADE = Made(ModelUsed("flows", "2", "a" * 64), [ModelUsed("hosts", "1", "b" * 64)], True, "auto")


def account(name, **changes):
    return CaptureAccount(
        capture=f"/archive/{name}", key=f"{name}-1", size_bytes=10, changed="1", run="one", tries=1, **changes
    )


@pytest.fixture(params=["disk", "memory"])
def out(request, tmp_path):
    if request.param == "disk":
        yield str(tmp_path / "out")
    else:
        yield "memory://out"
        fsspec.filesystem("memory").store.clear()


def files(out):
    found, root = fsspec.core.url_to_fs(out)
    return sorted(name.removeprefix(root).lstrip("/") for name in found.find(root))


def test_what_was_made_otherwise_is_refused_in_one_sentence(out):
    BulkStore(out).begin(MADE)
    BulkStore(out).begin(MADE)
    for made, said in (
        (replace(MADE, flows=ModelUsed("flows", "3", "a" * 64)), "flows by flows 2, now flows 3"),
        (
            replace(MADE, flows=ModelUsed("flows", "2", "c" * 64)),
            "another checkpoint of the name and version of one of flows 2, hosts 1",
        ),
        (replace(MADE, traces=[]), "traces by hosts 1, now none"),
        (replace(MADE, ports=False), "ports on, now off"),
        (replace(MADE, reader="zeek"), "the reader auto, now zeek"),
    ):
        with pytest.raises(BulkError, match=rf"made otherwise \({said}\): give another --out$"):
            BulkStore(out).begin(made)


def test_half_a_mark_is_none(out):
    store = BulkStore(out)
    store.begin(MADE)
    for name in ("a.pcap", "b.pcap"):
        store.mark(account(name))
    found, root = fsspec.core.url_to_fs(out)
    for content in (b'{"capture": "/archive/a', b"", b"\xff", b'{"capture": 1}'):
        found.pipe_file(f"{root}/done/a.pcap-1.json", content)
        assert store.account("a.pcap-1") is None
        assert list(store.accounts()) == ["b.pcap-1"]


def test_something_else_there_is_told(tmp_path):
    (tmp_path / "bulk.json").write_text("{}")
    with pytest.raises(BulkError, match="there is none of `tapline bulk`"):
        BulkStore(str(tmp_path)).begin(MADE)
    with pytest.raises(BulkError, match="cannot make it"):
        BulkStore("/proc/nothing").begin(MADE)


def test_a_file_is_there_whole_or_not_at_all(out):
    store = BulkStore(out)
    store.begin(MADE)

    def write(content, fail=False):
        with store.writing("flows/a.parquet") as file:
            file.write(content)
            assert "flows/a.parquet" not in files(out) or content == b"second"
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(b"half", fail=True)
    assert files(out) == ["bulk.json"]
    write(b"first")
    write(b"second")
    assert fsspec.open(f"{out}/flows/a.parquet").open().read() == b"second"
    assert files(out) == ["bulk.json", "flows/a.parquet"]


def test_marks_and_tables_say_what_came_of_captures(out):
    store = BulkStore(out)
    store.begin(MADE)
    good, bad = account("good", flows=3, classified=2), account("bad", error="no capture")
    for each in (good, bad):
        with store.writing(f"flows/{each.key}.parquet") as file:
            file.write(b"rows")
        store.mark(each)
    assert store.account("good-1") == good
    assert store.account("other-1") is None
    assert store.accounts() == {"good-1": good, "bad-1": bad}
    store.finish(store.accounts().values())
    assert files(out) == [
        "bulk.json", "captures.parquet", "done/bad-1.json", "done/good-1.json", "errors.parquet",
        "flows/good-1.parquet",
    ]  # fmt: skip
    rows = pq.read_table(fsspec.open(f"{out}/captures.parquet").open()).to_pylist()
    assert [(row["capture"], row["file"], row["classified"]) for row in rows] == [
        ("/archive/bad", None, 0), ("/archive/good", "good-1.parquet", 2),
    ]  # fmt: skip
    errors = pq.read_table(fsspec.open(f"{out}/errors.parquet").open()).to_pylist()
    assert errors == [{"capture": "/archive/bad", "error": "no capture"}]
