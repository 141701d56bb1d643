"""Latency, error and success, and what they are measured of."""
