"""`fmoe train`, and what it shares with studies."""
