"""Training: model, data, parallelism, loop and portable checkpoints."""
