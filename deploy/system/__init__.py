"""What the operating system gives: signals, priorities, files of text, the time that is left."""
