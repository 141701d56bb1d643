"""Policies that lerobot lacks, each a folder: network, lerobot policy, staged form, the original's files."""
