"""CogACT (Li et al. 2024): a VLA whose cognition token conditions a diffusion transformer."""
