"""What is particular to models of flows: pre-training and fine-tuning of MM4flow."""
