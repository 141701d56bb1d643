"""A run in wall-clock time: its settings, screen, news and results."""
