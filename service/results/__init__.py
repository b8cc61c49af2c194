"""The result of classifying inputs: its records, its summary, and writers of JSON, NDJSON and CSV."""
