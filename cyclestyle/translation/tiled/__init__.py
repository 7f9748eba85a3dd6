"""Translation of images that memory cannot hold: networks computed strip by strip."""
