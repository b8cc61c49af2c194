"""The files of a state directory: what is whole is read, what is not is told, whatever was cut or changed."""

import io

import pytest

from tapline.service.traces import state_files
from tapline.service.traces.state_files import DamageError, Journal, framed, read_framed


def test_records_come_back_and_damage_is_told():
    file = io.BytesIO(framed(b"one") + framed(b"two")[:-1])
    assert read_framed(file) == b"one"
    with pytest.raises(DamageError, match="not whole"):
        read_framed(file)
    with pytest.raises(DamageError, match="not whole"):
        read_framed(io.BytesIO(b""))
    changed = bytearray(framed(b"one"))
    changed[-1] ^= 1
    with pytest.raises(DamageError, match="damaged"):
        read_framed(io.BytesIO(bytes(changed)))
    with pytest.raises(DamageError, match="damaged"):
        read_framed(io.BytesIO(b"\xff" * 100))


def test_a_journal_passes_over_what_was_cut_or_changed(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    for text in (b"first", b"second"):
        journal.append(text)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # a kill in the middle of a line
    journal.append(b"third")
    assert list(journal.lines()) == [b"first", None, b"third"]
    path.write_bytes(whole.replace(b"first", b"fusst"))
    assert list(journal.lines()) == [None, b"second"]
    path.write_bytes(b"\x00" * 10_000 + b"\n" + whole)
    assert list(journal.lines())[-2:] == [b"first", b"second"]
    journal.close()


def test_a_rotated_journal_is_kept_until_it_is_needed_no_more(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.rotate()
    for number in range(3):  # two rotations without `forget_old`: the snapshot could not be written
        journal.append(b"%d" % number)
        journal.rotate()
    journal.append(b"3")
    assert list(journal.lines()) == [b"0", b"1", b"2", b"3"]
    journal.forget_old()
    assert list(journal.lines()) == [b"3"]
    journal.close()


def test_a_full_disk_costs_a_line_not_the_journal(tmp_path):
    path = tmp_path / "journal"
    path.symlink_to("/dev/full")
    journal = Journal(path)
    with pytest.raises(OSError, match="No space left"):
        journal.append(b"lost")
    path.unlink()
    journal.append(b"kept")
    assert list(journal.lines()) == [b"kept"]
    journal.close()


def test_of_a_journal_that_was_never_emptied_the_newest_part_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(state_files, "MAX_JOURNAL_BYTES", 200)
    journal = Journal(tmp_path / "journal")
    for number in range(1000):
        journal.append(b"%d" % number)
    found = list(journal.lines())
    assert found[-1] == b"999"
    assert len(found) < 20
    assert None not in found
    journal.close()
