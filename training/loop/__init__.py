"""Training of any model: configuration, trainer, state, schedule, processes, logs, run directories."""
