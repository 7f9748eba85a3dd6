"""Training objectives: the adversarial losses, all losses of a CycleGAN step, and the image pool."""
