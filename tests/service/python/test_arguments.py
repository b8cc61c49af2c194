"""A wrong argument is refused at the call, in one sentence that says what was expected, what came and what to do."""

from pathlib import Path

import pandas as pd
import pytest

import tapline
from tests.conftest import make_flows
from tests.paths import DATA

pytestmark = pytest.mark.whole

ANDROID = DATA / "captures" / "android.pcap"


@pytest.fixture(scope="module")
def model():
    return tapline.load("flow-protocols", threads=1)


@pytest.fixture(scope="module")
def devices():
    return tapline.load("iot-devices", threads=1)


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"on_error": "ignore"}, ValueError, "on_error: expected 'raise' or 'skip', got 'ignore': "),
        ({"on_error": None}, TypeError, "on_error: expected 'raise' or 'skip', got NoneType: "),
        ({"reader": "tshark"}, ValueError, "reader: expected 'auto' or 'zeek' or 'builtin', got 'tshark': "),
        ({"heads": "x"}, ValueError, "heads: expected 'none' or 'header' or 'full', got 'x': "),
        ({"engine": "onx"}, ValueError, "engine: expected 'onnx' or 'torch', got 'onx': "),
        ({"threads": "2"}, TypeError, "threads: expected a number from 1 to 1024, or 0 .*, got str: "),
        ({"threads": True}, TypeError, "threads: .*, got bool: "),
        ({"threads": -1}, ValueError, "threads: .*, got one that is negative: "),
        ({"threads": 10**12}, ValueError, "threads: .*, got one that is larger: "),
        ({"ports": "off"}, TypeError, "ports: expected True or False, got str: "),
        ({"cascade": "off"}, TypeError, "cascade: expected True or False, got str: "),
        ({"model": None}, TypeError, "model: expected a flow model, .*, got NoneType: "),
        ({"traces": 7}, TypeError, "traces: expected trace models, .*, got int: "),
        ({"traces": True}, TypeError, "traces: expected trace models, .*, got bool: "),
        ({"traces": [None]}, TypeError, "traces: expected trace models, .*, got NoneType: "),
    ],
)
def test_values_that_an_option_does_not_take(options, kind, said, model):
    (name,) = options
    calls = {
        "heads": [lambda: tapline.read(ANDROID, **options)],
        "reader": [lambda: tapline.read(ANDROID, **options), lambda: tapline.classify(ANDROID, **options)],
        "on_error": [lambda: tapline.read(ANDROID, **options), lambda: tapline.classify(ANDROID, **options)],
        "engine": [lambda: tapline.classify(ANDROID, **options), lambda: tapline.load("flow-protocols", **options)],
        "traces": [lambda: tapline.classify(ANDROID, **options)],
        "threads": [
            lambda: tapline.classify(ANDROID, **options),
            lambda: tapline.load("flow-protocols", **options),
            lambda: tapline.stream("ws://127.0.0.1:1", **options),
        ],
        "ports": [
            lambda: tapline.classify(ANDROID, **options),
            lambda: tapline.stream("ws://127.0.0.1:1", **options),
            lambda: model.predict([], **options),
            lambda: model.predict_proba([], **options),
        ],
        "cascade": [
            lambda: tapline.classify(ANDROID, **options),
            lambda: tapline.stream("ws://127.0.0.1:1", **options),
            lambda: model.predict([], **options),
            lambda: model.predict_proba([], **options),
        ],
        "model": [lambda: tapline.classify(ANDROID, **options), lambda: tapline.stream("ws://127.0.0.1:1", **options)],
    }
    for call in calls[name]:
        with pytest.raises(kind, match=f"^{said}"):
            call()


@pytest.mark.parametrize("call", ["predict", "predict_proba", "embed", "attention"])
def test_what_a_flow_model_does_not_take(model, devices, call):
    ask, flow, said = getattr(model, call), make_flows(1)[0], f"^{call}: expected flows, .*"
    traces = devices.traces(tapline.read(ANDROID))
    for given, came in [
        ("a.pcap", r"got str: read a capture by tapline\.read\(path\)"),
        (Path("a.pcap"), r"got \w+Path: read a capture by tapline\.read\(path\)"),
        (flow, "got a single Flow: give a list of it"),
        (next(iter(tapline.classify(ANDROID, traces=()))), "got a single Result: give a list of it"),
        (pd.DataFrame({"uid": ["C"]}), "got DataFrame of str: give flows"),
        (traces, "got list of Trace: give the `flows` of each, or ask a trace model"),
        (None, "got NoneType: give these"),
        ([flow, None], "got list of NoneType: give flows"),
    ]:
        with pytest.raises(TypeError, match=f"{said}{came}$"):
            ask(given)


@pytest.mark.parametrize("call", ["predict", "predict_proba", "attention"])
def test_what_a_trace_model_does_not_take(devices, call):
    ask, said = getattr(devices, call), f"^{call}: expected traces, .*"
    traces = devices.traces(tapline.read(ANDROID))
    for given, came in [
        (tapline.read(ANDROID), r"got Flows of Flow: make traces of flows first: model\.traces\(flows\)"),
        (tapline.classify(ANDROID, traces=()), r"got Results of Result: make traces of flows first: .*"),
        (traces[0], "got a single Trace: give a list of it"),
        (tapline.classify(ANDROID).traces, "got Traces of TraceVerdict: give traces"),
        ("a.pcap", r"got str: .*"),
    ]:
        with pytest.raises(TypeError, match=f"{said}{came}$"):
            ask(given)
    with pytest.raises(TypeError, match=r"^traces: expected flows, .*, got str: read a capture by tapline\.read"):
        devices.traces("path")
    with pytest.raises(TypeError, match=r"^traces: expected flows, .*, got list of Trace: "):
        devices.traces(traces)


def test_results_are_taken_as_their_flows(model, devices):
    results = tapline.classify(ANDROID, model=model, traces=())
    assert model.predict(results) == [result.verdict for result in results]
    assert len(model.embed(list(results)[:3])) == 3
    with pytest.raises(tapline.FlowError, match=r"needs packet heads"):  # nobody asked for them
        devices.traces(results)


@pytest.mark.parametrize("give", [tapline.read, tapline.classify])
def test_what_is_no_path(give, model):
    for given, came in [
        (None, "got NoneType: give these"),
        (7, "got int: give these"),
        (b"\xd4\xc3\xb2\xa1", "got bytes: give the path of a file"),
        (tapline.read(ANDROID), "got Flows: give flows to `predict` of a model"),
        (make_flows(1), "got list of Flow: give flows to `predict` of a model"),
        ([ANDROID, None], "got list of NoneType: give texts or pathlib.Path"),
        (model, "got FlowModel: give these"),
    ]:
        with pytest.raises(TypeError, match=f"^expected the path of a capture, or several, {came}$"):
            give(given)


def test_models_in_the_place_of_each_other(model, devices):
    with pytest.raises(TypeError, match=r"^model: expected a flow model, .*, got TraceModel: give that as traces$"):
        tapline.classify(ANDROID, model=devices)
    with pytest.raises(TypeError, match=r"^traces: expected trace models, .*, got FlowModel: give that as model$"):
        tapline.classify(ANDROID, traces=model)
    with pytest.raises(TypeError, match=r"^flow_model: expected a FlowModel, got TraceModel: "):
        tapline.load("iot-devices", flow_model=devices)
    for given in (None, model):
        with pytest.raises(TypeError, match=r"^expected a model, by its name or checkpoint directory, got "):
            tapline.load(given)
    for given in (7, [None], b"ws://127.0.0.1:1"):
        with pytest.raises(TypeError, match=r"^url: expected that of a sensor's bus, or several, got "):
            tapline.stream(given)


def test_no_traces(model):
    assert len(tapline.classify(ANDROID, model=model, traces=False).traces) == 0
