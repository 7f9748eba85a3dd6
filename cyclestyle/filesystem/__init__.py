"""Files and folders: atomic writes, listings of image files, and locks."""
