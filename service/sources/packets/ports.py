"""Port numbers that Zeek 8.0 takes for servers when a capture does not show who began (its `likely_server_ports`, as
the base scripts fill it, without the protocols that only a Zeek with Spicy knows), and those of tunnels."""

from __future__ import annotations

_SERVERS_TCP = frozenset(
    {
        *(21, 2811, 22, 25, 587, 53, 79, 80, 81, 631, 1080, 3128, 8000, 8080, 8888, 88, 135, 139, 445, 143),
        *(443, 563, 585, 614, 636, 989, 990, 992, 993, 995, 5223, 502, 1883, 3389, 5222, 5269),
        *(6666, 6667, 6668, 6669, 20000),
    }
)
_SERVERS_UDP = frozenset(
    {
        *(53, 137, 5353, 5355, 67, 88, 123, 161, 162, 443, 514, 1812, 3389, 5060, 20000),
        *(2123, 2152, 3544, 4789, 5072, 6081),
    }
)
VXLAN_PORT = 4789
GENEVE_PORT = 6081
TEREDO_PORT = 3544
GTP_PORTS = frozenset({2123, 2152})
AYIYA_PORT = 5072
GRE_PORT = 4754
TUNNEL_PORTS = frozenset({VXLAN_PORT, GENEVE_PORT, TEREDO_PORT, *GTP_PORTS, AYIYA_PORT, GRE_PORT})


def is_likely_server(port: int, tcp: bool) -> bool:
    """Whether a service is likely to listen on the port."""
    return port in (_SERVERS_TCP if tcp else _SERVERS_UDP)
