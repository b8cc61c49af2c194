"""Numbers of things in words."""

from __future__ import annotations


def many(count: int, thing: str) -> str:
    """So many of a thing: `1 capture`, `1,200 captures`."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def counted(least: int, unit: str) -> str:
    """What a label needs to count in macro-F1: `5 flows or more`."""
    return f"{many(least, unit)} or more"
