"""Pictures of runs: each function takes records, or a frame of them, and returns a matplotlib figure."""
