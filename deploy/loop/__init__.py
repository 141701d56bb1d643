"""The control loop and its parts; no clock of their own, no torch."""
