"""Translation of images too large for memory: networks are computed strip by strip."""
