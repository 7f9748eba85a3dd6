"""Model files of this program and of others: reading, writing, converting."""
