"""Recorded episodes: a LeRobotDataset, or a file of observations."""
