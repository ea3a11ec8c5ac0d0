"""Attacks that anyone can run: ``python -m tests.faults``. Each part prints what it tried, what held, and its seed.

What is attacked is in the parts' own files; a small part of each runs in the gate (`test_small`). Old failures have
regression tests of their own name in `test_old`.
"""
