"""Claims of later papers (since 2022) about these methods, one question per file."""
