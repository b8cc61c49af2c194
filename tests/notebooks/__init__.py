"""The notebooks of `docs/notebooks` run from the top, and give what stands in the repository."""
