"""Command line and configs: arguments, help texts, composing and checking configs, building configured objects."""
