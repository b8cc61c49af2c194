"""How settings are given: a file, the environment and flags, where each came from, and what is wrong with them."""
