"""What is particular to models of traces: the phases of Tracegram."""
