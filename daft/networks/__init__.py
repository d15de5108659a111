"""Pretrained networks as feature extractors, and what stands on their features."""
