"""Evaluation: scores that measure the quality of a generator's translations."""
