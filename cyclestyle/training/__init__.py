"""Training: the loop, optimizers, learning-rate schedule and moving average; how to restore these from checkpoints."""
