"""Conditions: one syntax, every field, and an error that says what is possible."""

import pytest

from tapline.service.results.where import Where, WhereError
from tests.service.results.results import make_flow, make_trace, make_verdict

SURE, UNSURE = make_verdict("SSH", 0.97), make_verdict("SSH", 0.4, unknown=True)
FLOW = make_flow(resp_p=22)


@pytest.mark.parametrize(
    ("text", "sure", "unsure"),
    [
        ("label=ssh", True, False),
        ("label=unknown", False, True),
        ("label!=SSH", False, True),
        ("nearest=SSH", True, True),
        ("unknown=yes", False, True),
        ("unknown!=true", True, False),
        ("confidence<0.8", False, True),
        ("confidence>=0.97", True, False),
        (" confidence > 0.3 , confidence < 0.5 ", False, True),
        ("model=flow-protocols", True, True),
        ("host=10.0.0.9", True, True),
        ("host=10.0.0.0/24", True, True),
        ("host!=10.0.0.9", False, False),
        ("host=fe80::/10", False, False),
        ("port=22", True, True),
        ("port>50000", False, False),
        ("proto=TCP,bytes=300", True, True),
        ("suspicious=yes", False, False),
        ("suspicious=no", False, False),
    ],
)
def test_of_flows(text, sure, unsure):
    assert (Where([text]).holds(FLOW, SURE), Where([text]).holds(FLOW, UNSURE)) == (sure, unsure)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("suspicious=yes", True), ("suspicious=no", False), ("host=10.0.0.0/8", True), ("label=mirai", True),
        ("port=443", False), ("port!=443", False), ("host=00:17:88:01:02:03", False),
    ],
)  # fmt: skip
def test_of_traces(text, holds):
    trace = make_trace(suspicion=0.97, suspicious=True)
    assert Where([text]).holds(trace, trace.verdict) is holds


def test_of_traces_by_mac_and_of_pairs():
    by_mac = make_trace("00:17:88:0a:02:03")
    assert Where(["host=00:17:88:0A:02:03"]).holds(by_mac, by_mac.verdict)
    assert not Where(["host=10.0.0.0/8"]).holds(by_mac, by_mac.verdict)
    pair = make_trace("10.0.0.5 - 192.0.2.1")
    assert Where(["host=192.0.2.1"]).holds(pair, pair.verdict)


def test_all_conditions_must_hold_and_none_is_always_met():
    assert Where(["label=ssh", "confidence>0.9"]).holds(FLOW, SURE)
    assert not Where(["label=ssh", "confidence<0.9"]).holds(FLOW, SURE)
    assert Where([]).holds(FLOW, UNSURE)
    assert not Where([])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lable=ssh", "`lable` is no field; give conditions"),
        ("label", "`label` is no condition; give"),
        ("label=ssh,", "`` is no condition"),
        ("label<ssh", "`label` is no number: `<` does not go with it"),
        ("confidence<high", "`confidence` takes a number, not `high`"),
        ("confidence=nan", "takes a number"),
        ("unknown=maybe", "takes yes or no"),
        ("host=10.0.0", "takes an address, a network"),
        ("host=10.0.0.0/99", "takes an address, a network"),
    ],
)
def test_an_error_says_what_is_possible(text, said):
    with pytest.raises(WhereError, match=said.replace("/", "/")):
        Where([text])
