"""Sessions and rates: bounded in number and in time."""

import pytest

from tapline.service.access import rates, sessions
from tapline.service.access.rates import Rates, client_of
from tapline.service.access.sessions import Sessions
from tests.service.access.test_keys import Clock

DIGEST = bytes(32)
WHO = ("soc", "192.0.2.1")


def test_a_session_lasts_while_it_is_used_and_not_for_ever():
    clock = Clock()
    found = Sessions(clock, lambda *_: None)
    token = found.begin(DIGEST, *WHO)
    assert found.use(token).key_digest == DIGEST
    assert found.use(token + "x") is None
    for _ in range(int(sessions.ABSOLUTE_SECONDS // sessions.IDLE_SECONDS)):
        clock.now += sessions.IDLE_SECONDS - 1
        assert found.use(token) is not None
    clock.now += sessions.IDLE_SECONDS - 1
    assert found.use(token) is None
    assert len(found) == 0


def test_a_session_ends_without_use_and_when_it_is_ended():
    clock = Clock()
    found = Sessions(clock, lambda *_: None)
    idle, ended = found.begin(DIGEST, *WHO), found.begin(DIGEST, *WHO)
    found.end(ended, "signed out")
    found.end(ended, "signed out")
    assert found.use(ended) is None
    clock.now += sessions.IDLE_SECONDS
    assert found.use(idle) is None


def test_of_too_many_sessions_the_one_longest_out_of_use_ends():
    found = Sessions(Clock(), lambda *_: None)
    first, second = found.begin(DIGEST, *WHO), found.begin(DIGEST, *WHO)
    found.use(first)
    for number in range(1, sessions.MAX_SESSIONS):
        found.begin(number.to_bytes(32, "big"), *WHO)
    assert len(found) == sessions.MAX_SESSIONS
    assert found.use(second) is None
    assert found.use(first) is not None


def test_a_key_that_signs_in_again_and_again_ends_its_own_sessions_alone():
    found = Sessions(Clock(), lambda *_: None)
    other = found.begin(bytes([1]) * 32, *WHO)
    tokens = [found.begin(DIGEST, *WHO) for _ in range(3 * sessions.MAX_OF_KEY)]
    assert len(found) == sessions.MAX_OF_KEY + 1
    assert found.use(other) is not None
    assert found.use(tokens[-1]) is not None
    assert found.use(tokens[0]) is None


def test_every_end_is_told_once_with_whose_it_was_and_why():
    clock, told = Clock(), []
    found = Sessions(clock, lambda session, why: told.append((session.key_name, session.address, why)))
    left, revoked = (found.begin(DIGEST, name, "::1") for name in ("left", "revoked"))
    found.end(left, "signed out")
    found.end(left, "signed out")
    found.end(revoked, "key revoked")
    found.begin(DIGEST, "forgotten", "::2")
    used = found.begin(DIGEST, "used", "::3")
    for _ in range(int(sessions.ABSOLUTE_SECONDS // sessions.IDLE_SECONDS) + 1):
        clock.now += sessions.IDLE_SECONDS - 1
        found.use(used)
    assert told == [
        ("left", "::1", "signed out"), ("revoked", "::1", "key revoked"), ("forgotten", "::2", "expired"),
        ("used", "::3", "expired"),
    ]  # fmt: skip
    told.clear()
    for number in range(sessions.MAX_OF_KEY + 1):
        found.begin(DIGEST, str(number), "::4")
    assert told == [("0", "::4", "one of too many")]


def test_tokens_are_not_kept():
    found = Sessions(Clock(), lambda *_: None)
    token = found.begin(DIGEST, *WHO)
    assert token not in repr(vars(found))
    assert len(token) >= 43  # 256 bits


def test_a_bucket_is_full_at_first_and_fills_evenly():
    clock = Clock()
    found = Rates(60, clock)
    assert [found.take("a") for _ in range(60)] == [0.0] * 60
    assert found.take("a") == pytest.approx(1)
    assert found.take("b") == 0
    clock.now += 0.5
    assert found.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert found.take("a") == 0
    clock.now += 3600
    assert [found.take("a") for _ in range(61)].count(0.0) == 60


def test_no_limit():
    assert {Rates(0, Clock()).take("a") for _ in range(1000)} == {0.0}


def test_buckets_are_bounded():
    found = Rates(1, Clock())
    for number in range(rates.MAX_BUCKETS + 10):
        found.take(str(number))
    assert len(found._buckets) == rates.MAX_BUCKETS


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"), ("-", "-"), ("testclient", "testclient"),
    ],
)  # fmt: skip
def test_what_counts_as_one_client(address, client):
    assert client_of(address) == client
