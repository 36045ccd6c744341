"""Eleven properties of 20,000 molecules by fourteen methods, and by a network for each."""
