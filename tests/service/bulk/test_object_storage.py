"""`tapline bulk` from and to a server of the S3 protocol: rows, bad captures, what is done before, and what is said
where the store refuses. Credentials are nowhere but in the environment."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec

import pytest

pq = pytest.importorskip("pyarrow.parquet")

from tests.paths import DATA, ROOT  # noqa: E402
from tests.service.bulk.bulk_process import UNDONE, bulk, cluster_of_two, ended, holders, interrupt  # noqa: E402

MISSING = [name for name in ("flask", "flask_cors", "moto", "ray", "s3fs") if find_spec(name) is None]
pytestmark = [
    pytest.mark.whole,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

START_SECONDS = 240
KEY, SECRET, TOKEN = "AKIAOFNOBODYATALL", "secret-of-nobody", "token-of-nobody"
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""That of the test itself: the server looks who asks, not whether it is true."""

CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}


class Store:
    """The server of a test, asked without the package that is tested."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method, path, content=b""):
        headers = {"Content-Type": "application/octet-stream", "Authorization": AUTHORIZATION}
        request = urllib.request.Request(f"{self.url}/{path}", data=content, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def names(self, bucket):
        return re.findall("<Key>(.*?)</Key>", self.ask("GET", f"{bucket}?list-type=2").decode())

    def changes(self, bucket):
        """When each object changed last."""
        listed = self.ask("GET", f"{bucket}?list-type=2").decode()
        return dict(re.findall("<Key>(.*?)</Key><LastModified>(.*?)</LastModified>", re.sub(r">\s+<", "><", listed)))

    def account(self, capture):
        """What came of a capture so far, None where it was not begun."""
        names = [name for name in self.names("archive") if name.startswith(f"verdicts/done/{capture}-")]
        return json.loads(self.ask("GET", f"archive/{names[0]}")) if names else None

    def under_way(self):
        """The captures that workers are at."""
        names = [name for name in self.names("archive") if name.startswith("verdicts/done/")]
        accounts = {name: json.loads(self.ask("GET", f"archive/{name}")) for name in names}
        return [name[14 : name.rindex("-")] for name, account in accounts.items() if account["error"] == UNDONE]

    def flows(self):
        """The flows that a reader of the store finds, by the name of the capture; its URL is in `capture` alone."""
        found = {}
        for name in self.names("archive"):
            if name.startswith("verdicts/flows/"):
                table = self.table(f"archive/{name}")
                capture = table["capture"][0].as_py().rpartition("/")[2]
                found[capture] = table.drop_columns(["capture", "input"]).unify_dictionaries()
        return found

    def table(self, path):
        return pq.read_table(io.BytesIO(self.ask("GET", path)))


@pytest.fixture
def store():
    """A store with two captures, one that is none, and a text."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.bulk.s3_server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, text=True,
    )  # fmt: skip
    try:
        store = Store(int(process.stdout.readline()))
        store.ask("PUT", "archive")
        for name in ("android.pcap", "telegram_videocall.pcapng"):
            store.ask("PUT", f"archive/day/{name}", (DATA / "captures" / name).read_bytes())
        store.ask("PUT", "archive/day/bad.pcap", b"none at all")
        store.ask("PUT", "archive/day/notes.txt", b"notes")
        yield store
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def surroundings(store, credentials=CREDENTIALS):
    """The environment of who uses the store."""
    own = {
        **credentials,
        "AWS_ENDPOINT_URL": store.url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    return {**{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}, **own}


def run(store, *arguments, credentials=CREDENTIALS):
    """Status and what was said of `tapline bulk` without traces."""
    with bulk(*arguments, env=surroundings(store, credentials)) as process:
        status, said = ended(process)
    assert not any(secret in said for secret in (KEY, SECRET, TOKEN))
    return status, said


def without_input(expected):
    """The flows of captures as they are wherever the captures lie."""
    return {name: flows.drop_columns("input") for name, flows in expected.items()}


@pytest.fixture
def large(archive, store):
    """A capture in the store that takes seconds."""
    store.ask("PUT", "archive/day/large.pcap", (archive / "large.pcap").read_bytes())


@pytest.fixture
def scratch():
    """A directory for files that have no name yet, with a path short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="bulk-", ignore_cleanup_errors=True) as folder:
        yield folder


def in_the_middle(process, store, scratch, name):
    """Wait until a worker is in the middle of a capture of this name, and none at another; its process."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if store.under_way() == [name]:
            working = list(holders(f"{scratch}/#"))
            if len(working) == 1 and store.under_way() == [name]:
                return working[0]
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no worker began {name}: {process.communicate()[1]}")


def test_captures_of_a_bucket_become_rows_in_it_once(store, expected):
    android = ("s3://archive/day/android.pcap", "--out", "s3://archive/verdicts")
    status, said = run(store, *android)
    assert (status, "1 of 1 captures done, 0 failed" in said) == (0, True), said
    before = store.changes("archive")

    status, said = run(store, "s3://archive/day/", "--out", "s3://archive/verdicts/")
    assert status == 1  # for what is bad
    assert "s3://archive/day/bad.pcap: expected a pcap or pcapng file" in said
    assert "2 of 3 captures done (1 of them before), 1 failed" in said
    assert store.flows() == {name: flows for name, flows in without_input(expected).items() if name != "large.pcap"}
    done = [name for name in before if "android" in name and name.startswith("verdicts/")]
    assert len(done) == 3  # flows, traces, mark
    assert {name: before[name] for name in done} == {name: store.changes("archive")[name] for name in done}

    errors = store.table("archive/verdicts/errors.parquet").to_pylist()
    assert [row["capture"] for row in errors] == ["s3://archive/day/bad.pcap"]
    for name in store.names("archive"):
        if name.startswith("verdicts/"):
            content = store.ask("GET", f"archive/{name}")
            if name.endswith(".parquet"):
                read = store.table(f"archive/{name}")
                content += f"{read.schema.metadata} {read.to_pylist()}".encode()
            assert not any(secret.encode() in content for secret in (KEY, SECRET, TOKEN))


def test_on_a_cluster_a_killed_worker_costs_no_row_and_doubles_none(store, large, expected, scratch):
    env = {**surroundings(store), "TMPDIR": scratch}
    arguments = ("s3://archive/day/", "--out", "s3://archive/verdicts", "--ray-address")
    with cluster_of_two(env) as address, bulk(*arguments, address, env=env) as process:
        os.kill(in_the_middle(process, store, scratch, "large.pcap"), signal.SIGKILL)
        status, said = ended(process)
    assert status == 1  # for what is bad
    assert "3 of 4 captures done, 1 failed" in said
    assert store.flows() == without_input(expected)
    tries = {name: store.account(name)["tries"] for name in ("android.pcap", "bad.pcap", "large.pcap")}
    assert tries == {"android.pcap": 1, "bad.pcap": 1, "large.pcap": 2}
    assert list(holders(f"{scratch}/")) == []


def test_an_interrupted_run_goes_on(store, large, expected, scratch):
    env = {**surroundings(store), "TMPDIR": scratch}
    arguments = [f"s3://archive/day/{name}" for name in expected] + ["--out", "s3://archive/verdicts"]
    with bulk(*arguments, env=env) as process:
        in_the_middle(process, store, scratch, "large.pcap")
        interrupt(process)
        status, said = ended(process)
    assert status == 130
    assert "interrupted: run it again to go on" in said
    assert set(store.flows()) < set(expected)
    assert store.account("large.pcap")["error"]
    assert list(holders(f"{scratch}/")) == []
    with bulk(*arguments, env=env) as process:
        status, said = ended(process)
    assert (status, store.flows()) == (0, without_input(expected)), said
    assert "3 of 3 captures done" in said


def test_what_changed_is_done_again(store):
    arguments = ("s3://archive/day/*.pcap*", "--out", "s3://archive/verdicts")
    assert run(store, *arguments)[0] == 1
    store.ask("PUT", "archive/day/bad.pcap", (DATA / "captures" / "android.pcap").read_bytes())
    status, said = run(store, *arguments)
    assert (status, "3 of 3 captures done (2 of them before), 0 failed" in said) == (0, True), said
    assert store.table("archive/verdicts/errors.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("source", "out", "said"),
    [
        ("s3://archive/day", "s3://mistyped/verdicts", "s3://mistyped/verdicts: cannot write bulk.json: "),
        ("s3://mistyped/day", "s3://archive/verdicts", "s3://mistyped/day: cannot read it: FileNotFoundError: "),
    ],
)
def test_a_bucket_that_is_not_there_is_told_and_not_made(store, source, out, said):
    status, found = run(store, source, "--out", out)
    assert status == 2
    assert found.startswith(said)
    assert found.count("\n") == 1
    assert b"mistyped" not in store.ask("GET", "")
    assert not any(name.startswith("verdicts") for name in store.names("archive"))


def test_credentials_that_are_missing_or_refused_are_told_without_them(store):
    arguments = ("s3://archive/day", "--out", "s3://archive/verdicts")
    status, said = run(store, *arguments, credentials={})
    assert (status, said) == (
        2, "s3://archive/day: cannot read it: NoCredentialsError: Unable to locate credentials\n",
    )  # fmt: skip
    store.ask("POST", "moto-api/reset-auth", b"0")  # from now on it knows nobody
    status, said = run(store, *arguments)
    assert status == 2
    assert said.startswith("s3://archive/day: cannot read it: PermissionError: ")
    assert said.count("\n") == 1
