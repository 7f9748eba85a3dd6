"""Training: the loop, optimizers, learning-rate schedule, moving average, and their state in checkpoints."""
