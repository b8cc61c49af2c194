"""What the service decided, kept: verdicts on flows and traces, and counts of flows that could get none."""
