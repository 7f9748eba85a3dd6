"""Devices, precision, memory, and the faster ways to compute on them."""
