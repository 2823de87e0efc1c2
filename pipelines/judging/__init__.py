"""What `fmoe evaluate`, `compare` and `promote` are made of."""
