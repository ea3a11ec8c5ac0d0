"""Examples of the classic tasks drawn from word lists and templates."""
