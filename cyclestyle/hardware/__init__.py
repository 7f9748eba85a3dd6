"""Devices, precision, memory and threads, and faster computation by CUDA graphs and Winograd convolutions."""
