"""Archives of captures to Parquet on Ray."""
