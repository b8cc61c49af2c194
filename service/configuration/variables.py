"""The variables of the environment that begin with `TAPLINE_`: settings, those of other programs, and misspelt ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from tapline.service.configuration.problems import unknown
from tapline.service.settings import ENV_PREFIX
from tapline.service.sources.zeek_owners import OWNER_VARIABLE

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"

OTHER_VARIABLES = {
    CONFIG_VARIABLE: "the file of settings, or none",
    f"{ENV_PREFIX}URL": "where `tapline models` finds a running service",
    f"{ENV_PREFIX}API_KEY_FILE": "the file with the key that `tapline models` shows to a service",
    f"{ENV_PREFIX}TARGET": "which image docker-compose.yml builds: cpu or gpu",
    OWNER_VARIABLE: "set for each Zeek that tapline starts: whose it is",
}
"""Variables of this project that are no settings, and what they are for."""

_SERVICE_LINK = re.compile(rf"{ENV_PREFIX}(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)")
"""What Kubernetes sets in every pod for a Service whose name begins with tapline."""


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


def misspelt(environment: Mapping[str, str], names: Collection[str]) -> list[str]:
    """A sentence for every variable that looks like one of ours, and is none."""
    known = {*map(variable, names), *OTHER_VARIABLES}
    ours = sorted(name for name in environment if name.upper().startswith(ENV_PREFIX))
    return [
        unknown(name, known) for name in ours if name.upper() not in known and not _SERVICE_LINK.fullmatch(name.upper())
    ]


def linked(environment: Mapping[str, str]) -> str | None:
    """What to say where Kubernetes has set the port in the place of a person, or None."""
    port = variable("port")
    if not environment.get(port, "").startswith(("tcp://", "udp://", "sctp://")):
        return None
    return (
        f"{port}: Kubernetes sets it for a Service called tapline: set enableServiceLinks: false in the pod, or call "
        "the Service otherwise"
    )
