"""Training of Tracegram: traces from extracted flows, the three phases, evaluation and the card."""
