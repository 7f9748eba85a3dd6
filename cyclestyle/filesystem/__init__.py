"""Files and folders: atomic writes, listings, locks."""
