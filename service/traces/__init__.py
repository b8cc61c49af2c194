"""Traces in the service: windows that flows fall into, their verdicts, live and offline."""
