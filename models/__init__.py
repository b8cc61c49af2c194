"""What the models read and compute: flows, their encoding, the networks and the checkpoint format."""
