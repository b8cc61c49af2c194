"""The text of the setting `output`: one URL to an output, read strictly into the record of its kind.

What the parameters of a kind are, stands in that record and nowhere else; no secret can stand in a URL.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from tapline.models.foreign_text import clean
from tapline.service.validation_words import ProblemsError

RecordKind = Literal["flows", "traces", "alerts"]
"""What can be sent, in the order in which it is dropped where there is no room: flows first, alerts last."""

RECORD_KINDS: tuple[RecordKind, ...] = ("flows", "traces", "alerts")

YesNo = Literal["yes", "no"]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=300)]

_PARAMETERS = re.compile(r"\?.*", re.DOTALL)
_URL = re.compile("[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class OutputError(ValueError):
    """An output cannot be used as it is set; the message says why, and shows no parameter's value but a wrong one."""


class OutputsError(ProblemsError, OutputError):
    """Outputs cannot be used: a sentence for each thing that is wrong."""


class OutputOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every output has.

    `shown` is its URL without parameters, and `name` what it is called in metrics and logs. `records` go there; without
    `early` only final verdicts, not those on flows that still live (the last word on a flow that ends with nothing new)
    and on windows that are open. At most
    `queue_records` and `queue_mb` wait in memory, and `spool_mb` (0: none) on disk while it is away.
    """

    shown: str
    name: Text
    records: tuple[RecordKind, ...] = RECORD_KINDS
    early: YesNo = "yes"
    queue_records: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 50_000
    queue_mb: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    spool_mb: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 256


class EveOutput(OutputOptions, frozen=True, kw_only=True):
    """A file of JSON lines as Suricata writes them.

    It is put aside where it would grow beyond `rotate_mb`, and at each whole multiple of `rotate_hours` since 1970 UTC
    (0: not for that reason); `keep` of those stay, compressed by `compress`. No spool: it would be on a disk, too.
    """

    path: Text
    rotate_mb: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    rotate_hours: Annotated[float, msgspec.Meta(ge=0, le=8784)] = 0
    keep: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10
    compress: Literal["none", "gzip", "zstd"] = "none"
    spool_mb: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class TlsOptions(OutputOptions, frozen=True, kw_only=True):
    """What every output over TLS has: PEM files; without `ca` the system's own CAs are trusted."""

    ca: Text | None = None
    cert: Text | None = None
    key: Text | None = None


class SyslogOutput(TlsOptions, frozen=True, kw_only=True):
    """A syslog receiver (RFC 5424): over UDP (RFC 5426), TCP with octet counting (RFC 6587) or TLS (RFC 5425)."""

    transport: Literal["udp", "tcp", "tls"]
    host: Text
    port: Port
    facility: Annotated[str, msgspec.Meta(pattern="^(user|daemon|auth|local[0-7])$")] = "local0"
    timeout_seconds: Seconds = 10


class WebhookOutput(TlsOptions, frozen=True, kw_only=True):
    """An HTTPS server that batches of JSON are posted to; `secret_file` holds what signs them."""

    https: bool
    host: Text
    port: Port
    path: str
    secret_file: Text | None = None
    timeout_seconds: Seconds = 10


class KafkaOutput(TlsOptions, frozen=True, kw_only=True):
    """A topic of Kafka. `config_file` holds further properties of librdkafka, one `key=value` a line, secrets too."""

    tls: bool
    servers: Text
    topic: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
    config_file: Text | None = None
    timeout_seconds: Seconds = 10


Output = EveOutput | SyslogOutput | WebhookOutput | KafkaOutput

SYSLOG_PORTS: dict[Literal["udp", "tcp", "tls"], int] = {"udp": 514, "tcp": 601, "tls": 6514}
"""Of each transport: RFC 5426, RFC 3195's (as rsyslog has it), RFC 5425."""

_KAFKA = ("kafka", "kafka+tls")
SCHEMES = (
    "eve", "http", "https", *_KAFKA, *(f"syslog+{transport}" for transport in SYSLOG_PORTS),
)  # fmt: skip

_Kind = TypeVar("_Kind", bound=OutputOptions)


def parse_output(text: str) -> Output:
    """The output that a URL names.

    Raises:
        OutputError: it is no such URL, or a parameter is unknown, given twice or out of bounds.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise OutputError(f"expected a URL that begins with {_either(SCHEMES, ':')}{_nearest(scheme, SCHEMES)}")
    where, mark, query = rest.partition("?")
    if scheme == "eve":
        return _eve(where, _parameters(query) if mark else {})
    try:
        parts = urlsplit(f"{scheme}:{where}")
        servers = [
            urlsplit(f"//{server}") for server in (parts.netloc.split(",") if scheme in _KAFKA else [parts.netloc])
        ]
        ports = [server.port for server in servers]  # reading it checks it
    except ValueError:
        raise OutputError(f"{scheme}: expected a host with a port from 1 to 65535") from None
    if 0 in ports:
        raise OutputError(f"{scheme}: expected a host with a port from 1 to 65535")
    if not _URL.fullmatch(where):
        raise OutputError("expected no blanks and only ASCII in the URL: write %20 and the like")
    if not where.startswith("//") or not all(server.hostname for server in servers):
        raise OutputError(f"expected {scheme}://HOST")
    if "@" in parts.netloc:
        raise OutputError("expected no user and password in the URL: secrets are read from files")
    if "#" in text:
        raise OutputError("expected no # in the URL: write %23")
    parameters = _parameters(query) if mark else {}
    if scheme.startswith("syslog+"):
        return _syslog(scheme.removeprefix("syslog+"), parts, ports[0], parameters)
    if scheme in _KAFKA:
        return _kafka(scheme, parts, parameters)
    return _webhook(scheme, parts, ports[0], parameters)


def parse_outputs(texts: Sequence[str]) -> list[Output]:
    """The outputs that URLs name, no two of one name and no two files the same.

    Raises:
        OutputsError: as of `parse_output`, of all of them; the message shows URLs without their parameters.
    """
    found: dict[str, Output] = {}
    problems = []
    for text in texts:
        try:
            output = parse_output(text)
        except OutputError as error:
            problems.append(f"{shown_output(text)}: {error}")
            continue
        if output.name in found:
            problems.append(f"{output.name} is there twice: give one of them a name of its own, ?name=NAME")
        found[output.name] = output
    files = [output.path for output in found.values() if isinstance(output, EveOutput)]
    if len(set(files)) < len(files):
        problems.append("one file is written by two outputs: give each a file of its own")
    if problems:
        raise OutputsError(problems)
    return list(found.values())


def shown_output(text: str) -> str:
    """The URL of an output for people, metrics and logs: what may be secret is left out, of any text at all."""
    try:
        return parse_output(_PARAMETERS.sub("", text)).shown
    except OutputError:
        scheme = text.partition(":")[0]
        return f"{scheme}:..." if scheme in SCHEMES else "..."


def _eve(where: str, parameters: dict[str, str]) -> EveOutput:
    path = unquote(where.removeprefix("//") if where.startswith("///") else where)
    if not path or path.endswith("/") or path.startswith("//") or "\0" in path:
        raise OutputError("expected the path of a file: eve:/var/log/tapline/eve.json")
    return _made(EveOutput, f"eve:{clean(path)}", parameters, path=path)


def _syslog(transport: str, parts: SplitResult, port: int | None, parameters: dict[str, str]) -> SyslogOutput:
    if parts.path not in ("", "/"):
        raise OutputError(f"expected syslog+{transport}://HOST:PORT and no path")
    if transport != "tls":
        _refuse(parameters, ("ca", "cert", "key"), "syslog+tls")
    port = port or next(number for name, number in SYSLOG_PORTS.items() if name == transport)
    shown = f"syslog+{transport}://{_bracketed(parts)}:{port}"
    return _made(
        SyslogOutput, shown, parameters, {"spool_mb": "0"} if transport == "udp" else {}, transport=transport,
        host=parts.hostname, port=port,
    )  # fmt: skip


def _webhook(scheme: str, parts: SplitResult, port: int | None, parameters: dict[str, str]) -> WebhookOutput:
    host = str(parts.hostname)
    if scheme == "http" and not _is_loopback(host):
        raise OutputError("expected https: what leaves this machine is encrypted; http only for localhost")
    if scheme == "http":
        _refuse(parameters, ("ca", "cert", "key"), "https")
    port = port or (443 if scheme == "https" else 80)
    shown = f"{scheme}://{_bracketed(parts)}:{port}"  # a path may be a secret
    return _made(
        WebhookOutput, shown, parameters, https=scheme == "https", host=host, port=port, path=parts.path or "/"
    )


def _kafka(scheme: str, parts: SplitResult, parameters: dict[str, str]) -> KafkaOutput:
    topic = parts.path.strip("/")
    if not topic:
        raise OutputError(f"expected {scheme}://HOST:9092/TOPIC, or several HOST:9092 with commas between them")
    if scheme == "kafka":
        _refuse(parameters, ("ca", "cert", "key"), "kafka+tls")
    shown = f"{scheme}://{parts.netloc}/{topic}"
    return _made(KafkaOutput, shown, parameters, tls=scheme == "kafka+tls", servers=parts.netloc, topic=topic)


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=64, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise OutputError("expected parameters as NAME=VALUE with & between them, after one ?") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise OutputError(f"the parameter {clean(name, 64)} is given twice")
        if not value.strip():
            raise OutputError(f"the parameter {clean(name, 64)} is empty: give it a value, or leave it out")
        found[name] = value
    return found


def _made(
    kind: type[_Kind], shown: str, parameters: dict[str, str], defaults: dict[str, str] | None = None, **fixed: Any
) -> _Kind:
    """The record of a kind; parameters are checked against its fields."""
    fixed["shown"] = shown
    allowed = [name for name in kind.__struct_fields__ if name not in fixed]
    for name in parameters:
        if name not in allowed:
            shown_name = clean(name, 64)
            raise OutputError(
                f"unknown parameter {shown_name}{_nearest(name, allowed)}; there are {', '.join(sorted(allowed))}"
            )
    values: dict[str, Any] = {"name": shown, **(defaults or {}), **parameters, **fixed}
    if "records" in parameters:
        values["records"] = _records(parameters["records"])
    try:
        made = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].partition("`")[0]
        problem = str(error).partition(" - at")[0].replace("Expected", "expected")
        raise OutputError(f"{name}={clean(str(values.get(name, '')), 64)}: {problem}") from None
    if "name" in parameters and not _NAME.fullmatch(made.name):
        raise OutputError("name: expected up to 64 letters, digits, dots, - and _")
    if isinstance(made, TlsOptions) and made.key is not None and made.cert is None:
        raise OutputError("key without cert: give both, or a cert that holds its key")
    return made


def _records(text: str) -> tuple[RecordKind, ...]:
    named = [part.strip() for part in text.split(",")]
    for part in named:
        if part not in RECORD_KINDS:
            raise OutputError(f"records={clean(text, 64)}: expected some of {', '.join(RECORD_KINDS)}, with commas")
    return tuple(kind for kind in RECORD_KINDS if kind in named)


def _refuse(parameters: dict[str, str], names: Sequence[str], scheme: str) -> None:
    for name in names:
        if name in parameters:
            raise OutputError(f"{name} is for {scheme}: use that scheme, or leave {name} out")


def _nearest(given: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(given, known, 1)
    return f", did you mean {found[0]}?" if found else ""


def _either(names: Sequence[str], end: str) -> str:
    return ", ".join(f"{name}{end}" for name in names[:-1]) + f" or {names[-1]}{end}"


def _bracketed(parts: SplitResult) -> str:
    return f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
