"""lerobot's own policies, taken apart; one file each."""
