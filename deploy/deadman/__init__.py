"""The robot in a process of its own, which brings it to rest when the loop is silent."""
