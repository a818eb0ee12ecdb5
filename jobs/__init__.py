"""One runnable file a job; `cli.py` says what they do alike."""
