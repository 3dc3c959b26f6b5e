"""Checkpoints: their format, their storage and the background writer."""
