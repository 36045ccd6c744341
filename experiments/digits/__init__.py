"""Pairs of scikit-learn's digits: data that several studies share."""
