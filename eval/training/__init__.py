"""Demonstrations into checkpoints."""
