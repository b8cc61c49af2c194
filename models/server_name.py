"""The name of the server that a flow's client asked for, by what the flow's content says: evidence to show beside a
verdict. No encoding reads it: a model that did would learn names instead of traffic."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from functools import lru_cache

from tapline.models.flow import MAX_SERVER_NAME_CHARS, Flow

_HOST_NAME = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_LABEL = re.compile(rb"[A-Za-z0-9_-]+")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\x00-\x20\x7f]+) HTTP/1\.[0-9]\r?")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
_PORT = re.compile(rb"(?::[0-9]{0,5})?")

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_TLS_VERSIONS = range(0x0300, 0x0305)
_DTLS_VERSIONS = (0xFEFF, 0xFEFD, 0xFEFC)
_MAX_RECORD_BYTES = 2**14
_SERVER_NAME, _HOST_NAME_TYPE = 0, 0

_DNS_HEADER = struct.Struct(">6H")
_DNS_QUESTION = struct.Struct(">2H")
"""Type and class, behind the name."""
_DNS_NOT_IN_QUERIES = 0x8000 | 0x7800 | 0x0400 | 0x0080 | 0x0040 | 0x000F
"""QR, Opcode, AA (in LLMNR C), RA, Z, RCODE: 0 in a standard query. TC, RD, AD and CD may be set."""
_DNS_CLASSES = frozenset({1, 3, 4, 255})
_DNS_MAX_NAME_BYTES = 255
_DNS_UNICAST_WANTED = 0x8000
"""The top bit of a question's class in multicast DNS (RFC 6762, 5.4)."""
_NETBIOS_PORT = 137
_NETBIOS_LABEL = re.compile(rb"[A-Pa-p]{32}")


def server_name(flow: Flow) -> str:
    """The name of the server that the client asked for, "" where there is none.

    The source's own word, `flow.server_name`, comes first: Zeek reads more than what is kept of content. Otherwise it
    is what the first content bytes say, of the side that holds a request (where a capture began in the middle, that may
    be the responder's):

    * TLS and DTLS: the host name in the ClientHello (RFC 6066, 3), as it came; in the first record, and there whole.
    * HTTP/1: the host of the target, where it has one, else of the Host field (RFC 9112, 3.2 and 3.3), as it came,
      without port and brackets.
    * DNS over UDP and TCP, on any port, so multicast DNS and LLMNR too: the name of a standard query of one question
      without records before it (RFC 1035, 4.1), in lower case; on port 137 decoded from what NetBIOS makes of it (RFC
      1001, 14.1). A query that multicast DNS sends with known answers is none.

    It is foreign text, of at most 255 characters that a host name or an address may have; what is cut before its end,
    or is not as these standards say up to there, gives "". Never raises; takes time linear in the content bytes.

    Nobody waits for a name but who writes it out, so flows do not carry what follows from their content: this is called
    where records and tables are made, for flows of every source alike, and nowhere else.
    """
    if flow.server_name:
        return flow.server_name
    is_netbios = flow.proto == "udp" and _NETBIOS_PORT in (flow.orig_p, flow.resp_p)
    return _said("netbios" if is_netbios else flow.proto, flow.orig_bytes, flow.resp_bytes)


@lru_cache(1024)  # a flow is asked about for its trace and again for its record
def _said(proto: str, *contents: bytes) -> str:
    """The name that contents say."""
    handshake, others = _PARSERS.get(proto, ((), ()))
    for content in contents:
        if not content:
            continue
        for parse in (*handshake, *others) if content[0] == _HANDSHAKE else others:
            try:
                return host_name(parse(content))
            except _NoRequestError:
                continue
    return ""


class _NoRequestError(Exception):
    """The content is not, or no longer, what the parser reads."""


class _Front:
    """Takes bytes from the front, and refuses what is not there whole."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise _NoRequestError
        return self.data[start : self.position]

    def number(self, width: int) -> int:
        start = self.position
        end = self.position = start + width
        if end > len(self.data):
            raise _NoRequestError
        return int.from_bytes(self.data[start:end])

    def vector(self, width: int, least: int, most: int) -> bytes:
        """A vector behind its length (RFC 8446, 3.4)."""
        size = self.number(width)
        _expect(least <= size <= most)
        return self.take(size)


def _expect(condition: bool) -> None:
    if not condition:
        raise _NoRequestError


def host_name(name: bytes) -> str:
    """The name as text, where it is short enough and a host name or an address; else ""."""
    if len(name) <= MAX_SERVER_NAME_CHARS and (_HOST_NAME.fullmatch(name) or _is_ipv6(name)):
        return name.decode("ascii")
    return ""


def _is_ipv6(name: bytes) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, name.decode("ascii"))
    except (OSError, ValueError):
        return False
    return True


def _tls(content: bytes) -> bytes:
    front = _Front(content)
    _expect(front.number(1) == _HANDSHAKE and front.number(2) in _TLS_VERSIONS)
    record = front.number(2)
    _expect(0 < record <= _MAX_RECORD_BYTES)
    message = _Front(content[front.position : front.position + record])
    _expect(message.number(1) == _CLIENT_HELLO)
    end = message.number(3) + message.position
    _expect(message.number(2) in _TLS_VERSIONS)
    return _hello_name(message, end, has_cookie=False)


def _dtls(content: bytes) -> bytes:
    """As RFC 9147, 4 and 5.2, and RFC 6347: the message may be in fragments, the name must be in the first."""
    front = _Front(content)
    _expect(front.number(1) == _HANDSHAKE and front.number(2) in _DTLS_VERSIONS)
    _expect(front.number(2) == 0)  # epoch: nothing is encrypted yet
    front.take(6)  # sequence number
    record = front.number(2)
    _expect(0 < record <= _MAX_RECORD_BYTES)
    header = _Front(content[front.position : front.position + record])
    _expect(header.number(1) == _CLIENT_HELLO)
    size = header.number(3)
    header.take(2)  # message sequence
    offset, fragment = header.number(3), header.number(3)
    _expect(offset == 0 and fragment <= size)
    message = _Front(header.data[header.position : header.position + fragment])
    _expect(message.number(2) in _DTLS_VERSIONS)
    return _hello_name(message, size, has_cookie=True)


def _hello_name(message: _Front, end: int, *, has_cookie: bool) -> bytes:
    """The name in a ClientHello behind its version; `end` is where the message ends, which extensions must fill."""
    message.take(32)  # random
    message.vector(1, 0, 32)  # session
    if has_cookie:
        message.vector(1, 0, 255)
    _expect(len(message.vector(2, 2, 2**16 - 2)) % 2 == 0)  # cipher suites
    message.vector(1, 1, 255)  # compression methods
    left = message.number(2)
    _expect(message.position + left == end)
    while left:
        kind, size = message.number(2), message.number(2)
        left -= 4 + size
        _expect(left >= 0)
        extension = message.take(size)
        if kind == _SERVER_NAME:
            return _only_host_name(extension)
    raise _NoRequestError


def _only_host_name(extension: bytes) -> bytes:
    front = _Front(extension)
    _expect(front.number(2) == len(extension) - 2 and front.number(1) == _HOST_NAME_TYPE)
    name = front.vector(2, 1, 2**16 - 1)
    _expect(front.position == len(extension))
    return name


def _http(content: bytes) -> bytes:
    request, newline, rest = content.removeprefix(b"\r\n").partition(b"\n")
    found = _REQUEST_LINE.fullmatch(request) if newline else None
    if not found:
        raise _NoRequestError
    method, target = found.groups()
    if method == b"CONNECT":
        return _host(target)
    if absolute := _ABSOLUTE_FORM.match(target):
        return _host(absolute[1])
    _expect(target.startswith(b"/") or target == b"*")
    for line in rest.split(b"\n")[:-1]:  # what is behind the last is cut
        name, colon, value = line.removesuffix(b"\r").partition(b":")
        _expect(bool(colon and _TOKEN.fullmatch(name)))  # not the empty line that ends the fields
        if name.lower() == b"host":
            return _host(value.strip(b" \t"))
    raise _NoRequestError


def _host(authority: bytes) -> bytes:
    """The host of `host[:port]`, an address of IPv6 without its brackets (RFC 3986, 3.2)."""
    if authority.startswith(b"["):
        host, bracket, port = authority[1:].partition(b"]")
        _expect(bool(bracket) and _is_ipv6(host))
    else:
        host, colon, port = authority.partition(b":")
        port = colon + port
    _expect(_PORT.fullmatch(port) is not None)
    return host


def _question(content: bytes) -> list[bytes]:
    """The labels of the name that a query asks for."""
    _expect(len(content) >= _DNS_HEADER.size)
    _, flags, questions, answers, authorities, additional = _DNS_HEADER.unpack_from(content)
    _expect(not flags & _DNS_NOT_IN_QUERIES)
    _expect(questions == 1 and answers == authorities == 0 and additional <= 2)  # EDNS and a signature at most
    labels: list[bytes] = []
    at, end = _DNS_HEADER.size, len(content) - _DNS_QUESTION.size
    while at < end and (size := content[at]):
        _expect(size < 64 and at + size < end)  # 64 and more would be a pointer, which a first name has no use for
        labels.append(content[at + 1 : at + 1 + size])
        at += 1 + size
    _expect(at < end and at < _DNS_HEADER.size + _DNS_MAX_NAME_BYTES)
    _expect(_LABEL.fullmatch(b"".join(labels)) is not None)
    kind, class_ = _DNS_QUESTION.unpack_from(content, at + 1)
    _expect(kind > 0 and class_ & ~_DNS_UNICAST_WANTED in _DNS_CLASSES)
    return labels


def _dns(content: bytes) -> bytes:
    return b".".join(_question(content)).lower()


def _netbios(content: bytes) -> bytes:
    """Each half byte came as a letter; the last byte is the kind of service, and blanks fill the rest."""
    label, *scope = _question(content)
    _expect(_NETBIOS_LABEL.fullmatch(label) is not None)
    halves = [letter - ord("A") for letter in label.upper()]
    name = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
    return b".".join([name[:15].rstrip(b" "), *scope]).lower()


def _dns_stream(content: bytes) -> bytes:
    """Behind the length of the message (RFC 1035, 4.2.2)."""
    front = _Front(content)
    return _dns(content[2 : 2 + front.number(2)])


_Parsers = tuple[Callable[[bytes], bytes], ...]

_PARSERS: dict[str, tuple[_Parsers, _Parsers]] = {
    "tcp": ((_tls,), (_http, _dns_stream)),
    "udp": ((_dtls,), (_dns,)),
    "netbios": ((), (_netbios,)),
}
"""By transport: what reads content that begins as a handshake, and what reads any."""
