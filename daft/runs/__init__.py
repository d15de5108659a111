"""One run on disk: what it is, its record, its state, and what is measured of it later."""
