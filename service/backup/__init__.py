"""What outlives a service, in one file to keep elsewhere, and back again."""
