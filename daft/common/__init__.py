"""Errors, files, progress, the door of the scripts: what every room may use."""
