"""A fleet: services on shards of several sensors' buses, one PostgreSQL history, and the account of all at the end."""
