"""Datasets, tiling, transforms and synthetic scenes."""
