"""The search for settings of fine-tuning: a space of them, and trials that are ordinary runs."""
