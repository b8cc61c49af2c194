"""The command line `tapline` and what a person sees in a terminal."""
