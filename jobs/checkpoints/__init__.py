"""Checkpoints: their format, where they are kept, and the background writer."""
