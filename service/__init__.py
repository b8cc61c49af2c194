"""The running side of tapline: sources of flows, engines, verdicts, and the command line and REST API around them."""
