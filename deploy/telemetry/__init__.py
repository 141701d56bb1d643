"""What a run tells while it runs, and never waits for."""
