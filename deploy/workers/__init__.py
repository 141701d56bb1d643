"""Who infers: simulated, or a process with a bundle."""
