"""Experiments: one folder a question, on real data or at scale. Each runs as `python -m
experiments.<name>`.
"""
