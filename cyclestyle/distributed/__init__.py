"""Runs of several processes: launching, process groups, agreement between ranks."""
