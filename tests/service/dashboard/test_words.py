import pytest

from tapline.service.dashboard import words


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (5_400_000, "5.4 MB"), (2e15, "2000.0 TB")],
)
def test_size(count, text):
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12 ms"), (1.5, "1.5 s"), (200, "3 min 20 s"), (7260, "2 h 1 min")]
)
def test_span(seconds, text):
    assert words.span(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0.5, "50.0%"), (0.9994, "99.9%"), (0.9996, "100 %")])
def test_percent(share, text):
    assert words.percent(share) == text


def test_moment_is_utc():
    assert words.moment(1_700_000_000_000_000) == "2023-11-14 22:13:20"


def test_ports_say_that_there_are_more():
    assert words.ports([22, 80], more=False) == "22, 80"
    assert words.ports([22, 80], more=True) == "22, 80, …"
    assert words.ports(list(range(20)), more=False).endswith("11, …")
