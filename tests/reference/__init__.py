"""What is right: numbers computed by other authors' code (`peers`), and slow literal forms of the fast methods
(`literal`).

``data/README.md`` says what the numbers are and which conventions they follow.
"""
