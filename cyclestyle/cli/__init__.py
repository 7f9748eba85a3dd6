"""From the command line to checked parts: arguments, help, composed configs, signatures."""
