"""Samplers, their tables and the noise they draw."""
