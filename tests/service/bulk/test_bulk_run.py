"""What is left to do, how it is cut into tasks, and where workers have room; no Ray is started."""

import pytest

pytest.importorskip("ray")

from tapline.service.bulk import bulk_run
from tapline.service.bulk.bulk_records import BulkCapture, CaptureAccount, left
from tapline.service.bulk.bulk_run import tasks_of
from tapline.service.bulk.ray_cluster import Places, places


def captures(*sizes):
    return [BulkCapture(f"/archive/{place}", str(place), size, "1") for place, size in enumerate(sizes)]


def test_what_is_left():
    done, failed, changed, new = captures(1, 2, 3, 4)
    accounts = {
        each.key: CaptureAccount(
            capture=each.path, key=each.key, size_bytes=each.size_bytes, changed=each.changed, run="one", tries=1,
            error="bad" if each is failed else None,
        )
        for each in (done, failed, changed)
    }  # fmt: skip
    changed = BulkCapture(changed.path, changed.name, 3, "2")
    assert left([done, failed, changed, new], accounts) == [failed, changed, new]


def test_large_captures_come_first_and_small_ones_together(monkeypatch):
    monkeypatch.setattr(bulk_run, "TASK_BYTES", 100)
    monkeypatch.setattr(bulk_run, "TASK_CAPTURES", 3)
    found = tasks_of(captures(10, 500, 30, 30, 30, 40, 0, 0, 2000), workers=2)
    assert [[each.size_bytes for each in task] for task in found] == [[2000], [500], [40, 30, 30], [30, 10, 0], [0]]
    assert tasks_of(captures(5, 5), workers=2) == [[each] for each in captures(5, 5)]


def node(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "workers", "threads", "found"),
    [
        ([node(8.0)], None, 1, Places(8, 1, 0)),
        ([node(8.0), node(4.0), node(64.0, alive=False)], None, 3, Places(3, 3, 0)),
        ([node(8.0)], 3, 1, Places(3, 1, 0)),
        ([node(8.0)], 30, 1, Places(8, 1, 0)),
        ([node(0.0)], None, 1, Places(1, 1, 0)),
        ([node(64.0), node(8.0, 2.0)], None, 1, Places(8, 1, 1 / 4)),  # where the GPUs are, four to each
        ([node(16.0, 2.0)], 3, 1, Places(3, 1, 1 / 2)),
        ([node(16.0, 4.0)], 2, 1, Places(2, 1, 1.0)),
    ],
)
def test_where_workers_have_room(nodes, workers, threads, found):
    assert places(nodes, workers, threads) == found
