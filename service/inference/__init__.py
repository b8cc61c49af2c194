"""From flows to verdicts: classifiers, batches, fair shares, the models that serve and how a foreign one is tried."""
