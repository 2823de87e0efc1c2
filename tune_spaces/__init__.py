"""The spaces that come with fmoe, read by name: `fmoe tune digits`."""
