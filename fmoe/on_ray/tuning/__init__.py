"""A study's trials under Ray Tune."""
