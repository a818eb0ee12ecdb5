"""Archives of texts become rows, good or rejected with their reason, each addressed by file and row."""
