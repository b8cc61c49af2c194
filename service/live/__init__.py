"""The live path: flows of sensors, or of a capture that is replayed, to verdicts and back."""
