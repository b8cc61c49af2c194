"""A week of a service in minutes: traffic, rotation, swaps, restarts, an upgrade, and the account of it all."""
