"""The offline side of tapline: datasets, training, evaluation and export of checkpoints."""
