"""Training the prior: settings, data, objective, loop, checkpoints."""
