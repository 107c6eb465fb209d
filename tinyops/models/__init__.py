"""Detectors: classes that receive their parts, and recipes that make them."""
