"""Benchmarks: commands that print tables, never tests: ``python -m tests.benchmarks.sweep``, ``edges`` and
``rules``.
"""
