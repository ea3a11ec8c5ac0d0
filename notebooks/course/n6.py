"""Exercises of notebook 6."""
