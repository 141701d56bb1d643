"""Every policy in miniature, with random weights, for tests."""
