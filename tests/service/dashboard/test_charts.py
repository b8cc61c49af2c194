from tapline.service.dashboard.activity import Step
from tapline.service.dashboard.charts import (
    LABELS,
    OTHER,
    counted_over_time,
    flows_of_trace,
    payload_lengths,
    verdict_rates,
)


def test_rates_by_label_are_stacked_and_the_rest_is_other():
    labels = {f"l{index:02d}": 20 - index for index in range(LABELS + 3)}
    steps = [Step(100.0, 2.0, {**labels, "unknown": 4}, {}), Step(102.0, 2.0, {"l00": 1}, {})]
    series = verdict_rates(steps)["series"]
    names = [each["name"] for each in series]
    assert names == [*sorted(labels)[:LABELS], "unknown", OTHER]
    points = {each["name"]: [value for _, value in each["data"]] for each in series}
    assert points["l00"] == [10.0, 0.5]
    assert points["unknown"] == [2.0, 0]
    assert points[OTHER] == [sum(labels[name] for name in sorted(labels)[LABELS:]) / 2, 0]
    assert series[0]["data"][1][0] == 102_000


def test_a_step_without_time_does_not_divide_by_it():
    assert verdict_rates([Step(1.0, 0.0, {"dns": 3}, {})])["series"][0]["data"] == [[1000, 0]]


def test_counts_over_time_keep_their_sum():
    points = {f"l{index:02d}": [(60.0, index + 1), (120.0, 1)] for index in range(LABELS + 4)}
    series = counted_over_time(points, "flows", 60)["series"]
    drawn = sum(count for each in series for _, count in each["data"])
    assert drawn == sum(count for found in points.values() for _, count in found)
    assert series[-1]["name"] == OTHER


def test_lengths_that_the_model_does_not_read_are_pale():
    bars = payload_lengths([100, -200, 300], read=2)["series"][0]["data"]
    assert [bar["value"] for bar in bars] == [100, -200, 300]
    assert [bar["itemStyle"]["opacity"] for bar in bars] == [1, 1, 0.35]
    assert bars[0]["itemStyle"]["color"] != bars[1]["itemStyle"]["color"]


def test_flows_of_a_trace_are_sized_by_share():
    options = flows_of_trace([(1.0, 0.81, "a", "dns"), (2.0, 0.04, "b", "dns"), (3.0, 0.15, "c", "tls")])
    dns, tls = options["series"]
    assert [point["value"] for point in dns["data"]] == [[1000, 81], [2000, 4]]
    assert dns["data"][0]["symbolSize"] > tls["data"][0]["symbolSize"] > dns["data"][1]["symbolSize"]
