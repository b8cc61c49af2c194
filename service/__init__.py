"""The running side of tapline: sources of flows, engines, verdicts, and the command line and REST API around them."""

__version__ = "0.1.0"
