"""Engines run a checkpoint on a batch of encoded flows; they know nothing of flows, sources or sinks."""
