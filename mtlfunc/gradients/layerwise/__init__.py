"""Gramians layer by layer: what a forward shows, and the cheapest form of each layer's part."""
