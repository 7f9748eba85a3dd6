"""Devices, precision, memory and threads, and faster ways to compute on them."""
