"""Command line and configs: parse arguments, print help, compose and check configs, build components."""
