"""Zeek's own word for what a connection is, the field `service` of its conn.log, as labels of flows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tapline.service.sources.logs import LogDirectory, LogError, is_log_directory
from tapline.training.data.label_map import LabelError
from tapline.training.data.label_table import LabelTable
from tapline.training.data.samples import samples_of
from tapline.training.loop.scores import Ints

SERVICES = {
    **{"smtp": "SMTP", "ftp": "FTP_CONTROL", "ftp-data": "FTP_DATA", "imap": "IMAP", "pop3": "POP3", "irc": "IRC"},
    **{"xmpp": "Jabber", "mysql": "MySQL", "postgresql": "PostgreSQL", "ldap_tcp": "LDAP", "ldap_udp": "LDAP"},
    **{"rdp": "RDP", "rdpeudp": "RDP", "smb": "SMBv23", "dce_rpc": "DCERPC", "krb": "Kerberos", "krb_tcp": "Kerberos"},
    **{"snmp": "SNMP", "radius": "Radius", "sip": "SIP", "modbus": "Modbus", "dnp3_tcp": "DNP3", "dnp3_udp": "DNP3"},
    **{"mqtt": "MQTT", "rfb": "VNC", "ntp": "NTP", "dhcp": "DHCP", "dns": "DNS", "ssh": "SSH", "syslog": "Syslog"},
    **{"gtpv1": "GTP", "teredo": "Teredo", "bittorrent": "BitTorrent", "redis": "RESP", "socks": "SOCKS"},
    **{"quic": "QUIC", "http": "HTTP", "dtls": "DTLS", "ssl": "TLS"},
}
"""The label that nDPI gives what Zeek calls so. Of several in one connection the first here counts: what is carried
stands before what carries it."""

DNS_LIKE = {137: "NetBIOS", 5353: "MDNS", 5355: "LLMNR"}
"""What Zeek calls DNS on these ports."""


def read_services(folders: Sequence[Path]) -> LabelTable:
    """The labels of the connections in all logs below `folders`; a folder of logs bears the name of its capture.

    Raises:
        LabelError: there is no log, or one cannot be read.
    """
    table = LabelTable("Zeek's services")
    for folder in folders:
        paths = [path for path in (folder, *sorted(folder.rglob("*"))) if is_log_directory(path)]
        if not paths:
            raise LabelError(f"{folder}: no conn.log below it: expected Zeek's logs, a folder for each capture")
        for path in paths:
            capture = path.relative_to(folder).as_posix() if path != folder else folder.resolve().name
            table.cover(capture)
            try:
                for flow in LogDirectory(path):
                    if (label := label_of_service(flow.service)) is not None:
                        table.take(capture, flow, DNS_LIKE.get(flow.resp_p, label) if label == "DNS" else label)
            except LogError as error:
                raise LabelError(str(error)) from None
    return table.finish()


def label_of_service(service: str) -> str | None:
    """The label of a connection by its `service`, names separated by commas; None where Zeek names nothing known."""
    said = {name.lower() for name in service.split(",")}
    return next((label for name, label in SERVICES.items() if name in said), None)


def services_of(table: LabelTable, features: Sequence[Path], labels: Sequence[str]) -> Ints:
    """What Zeek said of every flow of feature directories in their order, int64 [n]: the place among `labels`, one more
    than the last where it said none of them, and two more where no log is of the flow's capture."""
    index = {label: place for place, label in enumerate(labels)}
    said = []
    for sample in samples_of(features):
        capture = f"{sample.corpus}/{sample.capture}"
        label = table.label_of(capture, sample.flow)
        said.append(index.get(label or "", len(labels)) if table.name_of(capture) else len(labels) + 1)
    return np.array(said, np.int64)
