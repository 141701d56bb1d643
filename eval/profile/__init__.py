"""Another machine: what was measured on it, and what that says of any plan."""
