"""Evaluation: scores of a generator's translations."""
