"""The node's parameters, their ranges and an example."""
