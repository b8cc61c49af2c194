"""Checkpoints on labelled captures that nothing is trained on: joined, classified as they are served, and reported."""
