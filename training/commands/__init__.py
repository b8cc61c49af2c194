"""The command line `tapline-train`."""
