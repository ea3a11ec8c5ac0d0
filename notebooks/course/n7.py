"""Exercises of notebook 7."""
