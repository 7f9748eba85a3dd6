"""Training objectives: adversarial losses, the complete losses of a CycleGAN step, and the image pool."""
