"""Captures of any size, classified in the background: a queue on disk, results to page through, packets of one flow."""
