"""The commands, and what they compose of the library."""
