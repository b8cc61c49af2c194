"""What `tapline health` asks: whether the service of this environment answers, or that of another process, as a
container's health check asks it. It imports little, since it is run again and again."""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tapline.service.configuration.configuration import Configuration
from tapline.service.configuration.problems import ConfigurationError

TIMEOUT_SECONDS = 5.0

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_CONFIG = "config"
_FLAGS = ("host", "port", "tls_cert", _CONFIG)
"""Flags of `tapline serve` that tell where it listens."""


class HealthError(RuntimeError):
    """The service does not answer as a healthy one does; the message says how it did."""


def health_url(arguments: Sequence[str] = (), config: str | None = None) -> str:
    """Where a service says whether it is alive, by its command line, the environment and its file of settings; that is
    `config` where the command line names none.

    Raises:
        ConfigurationError: they cannot be used.
    """
    flags: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        flag, is_whole, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in _FLAGS:
            flags[name] = value if is_whole else next(words, "")
    found = Configuration(flags, flags.pop(_CONFIG, config))
    scheme = "https" if found.value("tls_cert") else "http"
    host = found.value("host")
    host = _WILDCARDS.get(host, host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{found.value('port')}/healthz"


def arguments_of(pid: int) -> list[str]:
    """The command line of a process, by Linux's /proc.

    Raises:
        HealthError: there is none, or it is another user's.
    """
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError as error:
        raise HealthError(f"process {pid}: its command line cannot be read: {error.strerror}") from None


def ask(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Ask once, past any proxy. The certificate is not checked: it is for the name by which others call.

    Raises:
        HealthError: no answer in time, or one that is not 200.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=timeout_seconds) as answer:
            if answer.status != 200:
                raise HealthError(f"{url} answered {answer.status}")
    except urllib.error.HTTPError as error:
        raise HealthError(f"{url} answered {error.code}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise HealthError(f"{url} does not answer: {getattr(reason, 'strerror', None) or reason}") from None


def health(pid: int | None = None, config: str | None = None) -> str:
    """Ask the service that this environment describes, or that which runs as process `pid`; gives the URL asked.

    Raises:
        HealthError, ConfigurationError: it is not healthy, or the settings are none.
    """
    url = health_url(arguments_of(pid) if pid is not None else [], config)
    ask(url)
    return url


def main() -> None:
    """What the image runs: the health of process 1; status 0 or 1, and a line."""
    try:
        print(f"{health(1)} answers")
    except (HealthError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
