"""Keys: how they are made and kept, which lines and files are taken, and that what was revoked never comes back."""

import hashlib
import os

import pytest

from tapline.service.access.key_file import LOOK_SECONDS, MAX_FILE_BYTES, KeyFile, add_key, keys_of, parse, remove_key
from tapline.service.access.keys import KeyRing, KeysError, digest_of, is_generated, make_key, new_key, read_line
from tests.logged import capture_logs


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def test_generated_keys_are_long_and_told_apart_from_anything_typed():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith("tapline_")
        assert len(bytes.fromhex(key.removeprefix("tapline_"))) == 32 + 4  # 256 bits and a checksum
        assert is_generated(key.encode())
        swapped = key[:-1] + ("0" if key[-1] != "0" else "1")
        assert not is_generated(swapped.encode())
    for typed in ("secret", "tapline_secret", "tapline_" + "0" * 72, ""):
        assert not is_generated(typed.encode())


def test_of_a_key_its_hash_alone_is_kept():
    key, text = make_key("grafana", "read")
    assert key.line() == f"grafana read sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    assert read_line(key.line()) == key
    assert text not in key.line()
    ring = KeyRing([make_key("other", "admin")[0], key])
    assert ring.find(digest_of(text.encode())) == key
    assert ring.find(digest_of(b"x")) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("grafana read", "expected NAME SCOPE sha256"),
        pytest.param(f"grafana read {new_key()}", "expected NAME SCOPE sha256", id="a key itself"),
        ("grafana read sha256:" + "0" * 63, "expected NAME SCOPE sha256"),
        ("grafana read md5:" + "0" * 64, "expected NAME SCOPE sha256"),
        ("grafana write sha256:" + "0" * 64, "expected a scope of read, classify, admin"),
        ("-x read sha256:" + "0" * 64, "expected a name"),
        ("api_key read sha256:" + "0" * 64, "expected a name"),
        ("a" * 65 + " read sha256:" + "0" * 64, "expected a name"),
    ],
)  # fmt: skip
def test_lines_that_are_none(line, said):
    with pytest.raises(KeysError, match=said) as raised:
        read_line(line)
    assert line.split()[-1][-30:] not in str(raised.value)  # nothing of what may be a key is repeated


def test_two_of_one_name_or_hash_are_a_problem_of_the_second_line():
    key, _ = make_key("a", "read")
    same = key.line().replace("a ", "b ", 1)
    ring, problems = parse(f"# ours\n\n{key.line()}\n{key.line()}\n{same}\n")
    assert [found.name for found in ring] == ["a"]
    assert [problem.split(":")[0] for problem in problems] == ["line 4", "line 5"]


def test_a_file_is_made_for_its_owner_alone_and_changed_in_place(path):
    for name, scope in (("grafana", "read"), ("soc", "admin")):
        add_key(path, make_key(name, scope)[0])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(key.name, key.scope) for key in keys_of(path)] == [("grafana", "read"), ("soc", "admin")]
    path.write_text("# who has which\n" + path.read_text())
    path.chmod(0o640)  # of a group, to which the service belongs
    remove_key(path, "grafana")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text().splitlines()[0] == "# who has which"
    assert [key.name for key in keys_of(path)] == ["soc"]
    with pytest.raises(KeysError, match="has a key named soc"):
        add_key(path, make_key("soc", "read")[0])
    with pytest.raises(KeysError, match="no key of that name"):
        remove_key(path, "grafana")
    assert sorted(found.name for found in path.parent.iterdir()) == ["keys"]  # nothing half-written stays


def test_through_a_link_the_file_behind_it_is_changed(path, tmp_path):
    add_key(path, make_key("a", "read")[0])
    link = tmp_path / "link"
    link.symlink_to(path)
    add_key(link, make_key("b", "read")[0])
    assert link.is_symlink()
    assert [key.name for key in keys_of(path)] == ["a", "b"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_lets_nobody_in(path, mode):
    add_key(path, make_key("a", "admin")[0])
    path.chmod(mode)
    for use in (lambda: KeyFile(path, Clock()), lambda: keys_of(path), lambda: remove_key(path, "a")):
        with pytest.raises(KeysError, match="chmod go-w"):
            use()


def test_a_file_that_was_read_again_is_logged_by_the_names_that_came_and_went(path):
    for name in ("a", "b", "c"):
        add_key(path, make_key(name, "read")[0])
    clock = Clock()
    file = KeyFile(path, clock)
    remove_key(path, "a")
    add_key(path, make_key("d", "admin")[0])
    path.write_text(path.read_text().replace("b read", "b classify"))
    with capture_logs() as told:
        clock.now += LOOK_SECONDS
        file.ring()
        path.chmod(0o666)
        clock.now += LOOK_SECONDS
        file.ring()
    read, refused = told
    assert (read["added"], read["removed"], read["changed"]) == (["d"], ["a"], ["b"])
    assert refused["removed"] == ["b", "c", "d"]


def test_files_that_are_none(path, tmp_path):
    with pytest.raises(KeysError, match=r"no such file.*tapline keys add"):
        KeyFile(path, Clock())
    with pytest.raises(KeysError, match="cannot be read: is a directory"):
        KeyFile(tmp_path, Clock())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeysError, match="expected UTF-8"):
        KeyFile(path, Clock())
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(KeysError, match="at most 256 KiB"):
        KeyFile(path, Clock())
    path.write_text("grafana read secret\n")
    with pytest.raises(KeysError, match="line 1: expected NAME SCOPE"):
        KeyFile(path, Clock())


def test_a_file_that_others_can_read_is_taken_and_told(path):
    add_key(path, make_key("a", "admin")[0])
    path.chmod(0o644)
    with capture_logs() as told:
        assert len(KeyFile(path, Clock()).ring()) == 1
    assert ["others may read" in str(entry) for entry in told] == [True]


def test_a_change_counts_at_the_next_look(path):
    clock = Clock()
    add_key(path, make_key("a", "read")[0])
    file = KeyFile(path, clock)
    add_key(path, make_key("b", "read")[0])
    assert [key.name for key in file.ring()] == ["a"]
    clock.now += 1
    assert [key.name for key in file.ring()] == ["a", "b"]
    remove_key(path, "a")
    clock.now += 1
    assert [key.name for key in file.ring()] == ["b"]


@pytest.mark.parametrize("what", ["gone", "writable", "damaged", "not text"])
def test_what_cannot_be_read_any_more_lets_nobody_in(path, what):
    """A mistake in a file never brings back, or keeps, what its owner meant to revoke."""
    clock = Clock()
    for name in ("a", "b"):
        add_key(path, make_key(name, "admin")[0])
    file = KeyFile(path, clock)
    whole = path.read_text()
    if what == "gone":
        path.unlink()
    elif what == "writable":
        path.chmod(0o666)
    elif what == "damaged":
        path.write_text(whole.replace("b admin", "b adm1n"))
    else:
        path.write_bytes(b"\xff")
    clock.now += 1
    assert [key.name for key in file.ring()] == (["a"] if what == "damaged" else [])
    path.write_text(whole)
    path.chmod(0o600)
    os.utime(path, ns=(1, 1))
    clock.now += 1
    assert len(file.ring()) == 2
