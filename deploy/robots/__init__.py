"""Robots by name, what their actions may be, and how they come to rest."""
