"""Settings as files of a deployment name them: `TAPLINE_...` and flags of `tapline serve`."""

import re

from tapline.service.configuration.variables import misspelt
from tapline.service.settings import Settings


def misspelt_settings(text):
    """What is said of every variable in a text that begins with `TAPLINE_` and is no setting."""
    names = set(re.findall(r"\bTAPLINE_[A-Z_]+\b", text))
    return misspelt(dict.fromkeys(names, ""), Settings.model_fields)


def unknown_flags(arguments):
    """Flags of a command line of `serve` that are no settings."""
    flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    return [
        flag for flag in flags if flag.removeprefix("--").replace("-", "_") not in {*Settings.model_fields, "config"}
    ]
