"""The training loop: steps, optimizers, schedule, moving average, state."""
