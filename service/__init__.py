"""The running side of tapline: sources of flows, engines, verdicts, and the command line and REST API around them."""

import models  # noqa: F401 - what it sets for the process comes before any library

__version__ = "0.1.0"
