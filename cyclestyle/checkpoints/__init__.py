"""Checkpoints: folders that are complete or absent, and the model file inside them."""
