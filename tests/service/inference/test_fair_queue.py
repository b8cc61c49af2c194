"""The fair queue: turns by subject, bounded, sheds the heaviest; and counts in bounded space."""

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from tapline.service.inference.fair_queue import FairQueue, HeavyHitters


def test_subjects_take_turns():
    queue = FairQueue(10, lambda subject, item: None)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    assert queue.take(10) == ["b2", "a3"]
    assert queue.take(1) == []


def test_the_heaviest_subject_loses_its_newest():
    shed = []
    queue = FairQueue(4, lambda subject, item: shed.append((subject, item)))
    for number in range(100):
        queue.put("flood", number)
    queue.put("quiet", "q1")
    queue.put("other", "o1")
    assert len(queue) == 4
    assert shed[:2] == [("flood", 4), ("flood", 5)]
    assert shed[-2:] == [("flood", 3), ("flood", 2)]
    assert sorted(map(str, queue.take(9))) == ["0", "1", "o1", "q1"]


OPERATIONS = st.lists(st.one_of(st.sampled_from("abcd"), st.integers(1, 4)), max_size=80)


@given(OPERATIONS, st.integers(1, 6))
def test_every_item_leaves_once_and_the_shed_one_is_of_a_heaviest_subject(operations, size):
    held = Counter()
    gone = deque()

    def on_shed(subject, item):
        assert held[subject] == max(held.values())
        held[subject] -= 1
        gone.append(item)

    queue = FairQueue(size, on_shed)
    put = 0
    for operation in operations:
        if isinstance(operation, str):
            held[operation] += 1
            queue.put(operation, (operation, put))
            put += 1
        else:
            for subject, number in queue.take(operation):
                held[subject] -= 1
                gone.append((subject, number))
        assert len(queue) == sum(held.values()) <= size
    gone.extend(queue.take(put))
    assert sorted(item[1] if isinstance(item, tuple) else item for item in gone) == list(range(put))


def test_heavy_hitters_keep_the_heavy_in_bounded_space():
    hitters = HeavyHitters(size=10)
    for number in range(1000):
        hitters.add("flood" if number % 2 else f"once-{number}")
    (key, count), *others = hitters.top(10)
    assert (key, len(others)) == ("flood", 9)
    assert count >= 500


def test_urgent_items_go_first_and_do_not_starve_the_rest():
    queue = FairQueue(100, lambda subject, item: None)
    for number in range(20):
        queue.put("bulk", f"b{number}")
        queue.put("early", f"u{number}", urgent=True)
    taken = queue.take(17)
    assert [item for item in taken if item[0] == "b"] == ["b0", "b1"]
    assert taken[7] == "b0"
    assert taken[15] == "b1"
    assert len(queue.take(100)) == 23


def test_a_batch_holds_no_more_tokens_than_allowed_but_always_one_item():
    queue = FairQueue(10, lambda subject, item: None)
    for item, tokens in (("a", 900), ("b", 50), ("c", 50), ("d", 1)):
        queue.put(item, item, tokens=tokens)
    assert queue.tokens == 1001
    assert queue.take(10, 100) == ["a"]
    assert queue.take(10, 100) == ["b", "c"]
    assert queue.take(10, 100) == ["d"]
    assert queue.tokens == 0


def test_what_is_not_urgent_is_shed_first():
    shed = []
    queue = FairQueue(3, lambda subject, item: shed.append(item))
    for item in ("b1", "u1", "u2", "u3"):
        queue.put("flood", item, urgent=item[0] == "u")
    assert shed == ["b1"]
    queue.put("flood", "u4", urgent=True)
    assert shed == ["b1", "u4"]
