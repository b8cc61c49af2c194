"""The table of live flows: which packet belongs to which, who began it, and when it ends."""
