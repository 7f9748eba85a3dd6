"""Several processes as one: process groups, launching, agreement."""
