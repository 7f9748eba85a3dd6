"""Command line and configs: parsing arguments, printing help, composing and checking configs, building components."""
