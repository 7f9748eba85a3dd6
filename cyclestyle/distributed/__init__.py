"""Runs of several processes: their launch, their process groups, and agreement between ranks."""
