"""Command line and configs: parsing of arguments, help, composition and checks of configs, building of components."""
