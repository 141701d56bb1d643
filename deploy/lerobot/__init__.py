"""A drop-in for lerobot: its own commands run our policies and accelerated ones; with torch."""
