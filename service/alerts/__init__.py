"""Alert rules, and the alerts that they make of verdicts."""
