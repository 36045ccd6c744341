"""Claims of later papers (since 2020) about these methods, one question per file."""
