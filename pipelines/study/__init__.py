"""`fmoe tune` and `fmoe studies`."""
