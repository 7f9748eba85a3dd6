"""Checkpoints of a run: folders that are written atomically, and the model file in each folder."""
