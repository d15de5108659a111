"""What to run: the schema of a configuration, its check, and Hydra, which composes it."""
