"""Objectives: the losses of a training step, and the images that they compare."""
