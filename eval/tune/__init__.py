"""A budget in, the best plan out: candidates are counted, timed, raced in closed loop, and confirmed."""
