"""Episodes in virtual time: a world that does not wait."""
