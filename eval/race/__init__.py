"""Judge candidates in closed loop: race them, confirm who won, make a ladder, and say it in a sentence."""
