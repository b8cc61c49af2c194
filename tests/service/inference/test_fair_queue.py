"""The fair queue: turns by subject, oldest or newest first, trimmed at the heaviest; and counts in bounded space."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tapline.service.inference.fair_queue import FairQueue, HeavyHitters


def test_subjects_take_turns():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.put(item[0], item)
    assert queue.take(4) == ["a1", "b1", "c1", "a2"]
    assert queue.take(10) == ["b2", "a3"]
    assert queue.take(1) == []


def test_the_newest_first_is_that_of_who_came_last_and_turns_stay():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.put(item[0], item)
    assert queue.take(2, order="newest") == ["c1", "b2"]
    queue.put("d", "d1")
    queue.put("a", "a4")  # who waits already does not come up again by sending more
    assert queue.take(9, order="newest") == ["d1", "a4", "b1", "a3", "a2", "a1"]


def test_the_newest_of_each_in_turn():
    queue = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.put(item[0], item)
    assert queue.take(2, order="newest of each") == ["a3", "b2"]
    queue.put("d", "d1")
    assert queue.take(9, order="newest of each") == ["c1", "a2", "b1", "d1", "a1"]


def test_the_heaviest_subject_is_trimmed_at_its_oldest():
    queue = FairQueue()
    for number in range(100):
        queue.put("flood", number)
    queue.put("quiet", "q1")
    queue.put("other", "o1")
    assert queue.trim(98) == list(range(98))
    assert sorted(map(str, queue.trim(9))) == ["98", "99", "o1", "q1"]
    assert (len(queue), queue.trim(1)) == (0, [])


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.booleans()),
        st.tuples(st.just("take"), st.integers(1, 4), st.sampled_from(["oldest", "newest of each", "newest"])),
        st.tuples(st.just("trim"), st.integers(1, 4), st.none()),
        st.tuples(st.just("remove"), st.sampled_from("abcd"), st.booleans()),
    ),
    max_size=80,
)


@given(OPERATIONS)
def test_every_item_leaves_once_and_trimmed_ones_are_the_oldest_of_a_heaviest_subject(operations):
    held: dict[tuple, list] = {(subject, urgent): [] for subject in "abcd" for urgent in (True, False)}
    queue = FairQueue()

    def of(subject):
        return len(held[subject, True]) + len(held[subject, False])

    for number, (operation, what, flag) in enumerate(operations):
        if operation == "put":
            held[what, flag].append((what, flag, number))
            queue.put(what, (what, flag, number), tokens=number, urgent=flag)
        elif operation == "take":
            expected = min(what, len(queue))
            taken = queue.take(what, order=flag)
            assert len(taken) == expected
            for item in taken:
                assert item == held[item[:2]].pop(0 if flag == "oldest" else -1)
        elif operation == "trim":
            for item in queue.trim(what):
                assert of(item[0]) == max(map(of, "abcd"))
                assert not (item[1] and held[item[0], False])
                assert item == held[item[:2]].pop(0)
        elif held[what, flag]:
            item = held[what, flag].pop(len(held[what, flag]) // 2)
            queue.remove(what, item, tokens=item[2], urgent=flag)
        assert len(queue) == sum(map(of, "abcd"))
        assert queue.tokens == sum(item[2] for items in held.values() for item in items)
        assert [queue.waiting_of(subject) for subject in "abcd"] == [of(subject) for subject in "abcd"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 9)), max_size=200), st.integers(1, 4))
def test_heavy_hitters_never_count_too_few(keys, size):
    hitters, true = HeavyHitters(size), Counter()
    for key, number in keys:
        hitters.add(key, number)
        true[key] += number
    found = hitters.top(size)
    assert sum(count for _, count in found) == true.total()
    assert len(found) == min(size, len(true))
    for key, count in found:
        assert true[key] <= count <= true[key] + found[-1][1]


def test_heavy_hitters_keep_the_heavy_in_bounded_space():
    hitters = HeavyHitters(size=10)
    for number in range(1000):
        hitters.add("flood" if number % 2 else f"once-{number}")
    (key, count), *others = hitters.top(10)
    assert (key, len(others)) == ("flood", 9)
    assert count >= 500


def test_urgent_items_go_first_and_do_not_starve_the_rest():
    queue = FairQueue()
    for number in range(20):
        queue.put("bulk", f"b{number}")
        queue.put("early", f"u{number}", urgent=True)
    taken = queue.take(17)
    assert [item for item in taken if item[0] == "b"] == ["b0", "b1"]
    assert taken[7] == "b0"
    assert taken[15] == "b1"
    assert len(queue.take(100)) == 23


def test_a_batch_holds_no_more_tokens_than_allowed_but_always_one_item():
    queue = FairQueue()
    for item, tokens in (("a", 900), ("b", 50), ("c", 50), ("d", 1)):
        queue.put(item, item, tokens=tokens)
    assert queue.tokens == 1001
    assert queue.take(10, 100) == ["a"]
    assert queue.take(10, 100) == ["b", "c"]
    assert queue.take(10, 100) == ["d"]
    assert queue.tokens == 0


def test_what_is_not_urgent_is_trimmed_first():
    queue = FairQueue()
    for item in ("u1", "b1", "u2"):
        queue.put("flood", item, urgent=item[0] == "u")
    assert queue.trim(2) == ["b1", "u1"]
