"""A run's folder: its lock, its status, and how the run ended."""
