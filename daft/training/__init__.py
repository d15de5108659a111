"""Epochs: the loop, its schedules, and what is measured of a network before and after."""
