"""Fuzz targets: each module makes one kind of input wrong, `case` tries one such input and raises on a fault."""
