"""Who tried how many ports of how many hosts: exact where it can be, honest where it is bounded, in bounded memory."""

import pytest

from tapline.service.results.port_tries import KEPT_HOSTS, MAX_RESPONDERS, PortTries, PortTryCounter, tried_texts
from tests.service.results.results import make_flow


def counted(flows):
    counter = PortTryCounter()
    for flow in flows:
        counter.add(flow)
    return counter.told()


def silent(**fields):
    return make_flow(payload=False, **fields)


def test_a_port_scan_is_told_in_words():
    told = counted(silent(resp_p=port) for port in range(1, 1995))
    assert told.hosts == [PortTries("10.0.0.5", 1994, 1, 1994)]
    assert list(tried_texts(told, 5)) == ["10.0.0.5 tried 1,994 ports of 1 host, none answered with payload"]


def test_every_port_of_both_transports_is_counted_once():
    ports = [*range(65536), 0, 65535]
    told = counted(silent(resp_p=port, proto=proto) for proto in ("tcp", "udp") for port in ports)
    assert (told.hosts[0].ports, told.hosts[0].flows) == (2 * 65536, 2 * len(ports))


def test_of_many_hosts_it_is_said_that_there_are_more():
    exactly = [silent(resp_h=f"10.1.{number >> 8}.{number & 255}", resp_p=22) for number in range(MAX_RESPONDERS)]
    assert counted(exactly).hosts == [PortTries("10.0.0.5", MAX_RESPONDERS, MAX_RESPONDERS, 1)]
    told = counted([*exactly, *(silent(resp_h=f"10.2.0.{number}", resp_p=22) for number in range(50))])
    assert told.hosts == [PortTries("10.0.0.5", MAX_RESPONDERS + 50, MAX_RESPONDERS, 1, more_responders=True)]
    assert list(tried_texts(told, 5)) == ["10.0.0.5 tried 1 port of 1,000+ hosts, none answered with payload"]


@pytest.mark.parametrize("scan_first", [True, False])
def test_a_flood_of_forged_addresses_hides_no_scan_and_takes_no_memory(scan_first):
    scan = [silent(resp_p=port) for port in range(500)]
    flood = [silent(orig_h=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}") for number in range(70_000, 80_000)]
    counter = PortTryCounter()
    for flow in [*scan, *flood] if scan_first else [*flood, *scan]:
        counter.add(flow)
    assert len(counter._hosts) == KEPT_HOSTS
    told = counter.told()
    assert told.hosts[0] == PortTries("10.0.0.5", 500, 1, 500)
    assert sum(host.flows for host in told.hosts) + told.flows_of_others == 10_500
    assert list(tried_texts(told, 1))[1] == "other originators: 10,000 flows without payload"


def test_flows_with_payload_are_none_and_icmp_has_no_ports():
    assert counted([make_flow()]).hosts == []
    told = counted([silent(proto="icmp", resp_p=0)])
    assert list(tried_texts(told, 5)) == ["10.0.0.5 tried 1 host, none answered with payload"]
