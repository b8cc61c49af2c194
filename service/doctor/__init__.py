"""Whether a machine can do what settings ask of it: each check says what it found, and what to do."""
