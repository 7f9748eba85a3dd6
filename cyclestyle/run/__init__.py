"""The folder of a run: its lock, its status and its failure report."""
