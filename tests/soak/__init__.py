"""A soak: a real service under mixed traffic with faults injected, and its account at the end."""
