"""What is learned from: origins, extraction, labels, splits, leaks, shards, batches."""
