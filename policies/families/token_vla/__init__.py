"""OpenVLA's form (Kim et al. 2024): a language model that writes actions as tokens."""
