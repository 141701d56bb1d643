"""Meta-World in lerobot's keys, our tasks made of its own, experts and demonstrations."""
