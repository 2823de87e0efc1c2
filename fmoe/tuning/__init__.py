"""Studies without Ray: spaces, their settings, schedulers and searchers by name, trials."""
