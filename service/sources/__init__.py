"""Where flows come from: capture files, NDJSON, Zeek's logs, and the bus."""
