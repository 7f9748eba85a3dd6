"""Model files of this program and of other programs: reading, writing and conversion."""
