"""How good translations are, in numbers."""
