"""How numbers come about: random draws, precision, several processes, state by name."""
