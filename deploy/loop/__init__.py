"""The control loop and its parts; no clock of their own, no torch.

Words, used alike in code, flags, parameters and results:

    fresh, stale        an action younger than n_action_steps ticks; an older one, executed all the same
    age of an action    ticks since the observation it was computed from
    observation age     time since what is seen was new (`observation_age_s`)
    stuck               a sensor says bit for bit the same (`stuck_s`)
    late                a tick that acts after its control period; a chunk that misses its deadline
    hold, stop, rest    until all is well again; until somebody resets; the last thing a robot is told
    posture             what a robot holds before its first action
    ladder, rung        variants of a policy to choose among before every chunk; one of them
"""
