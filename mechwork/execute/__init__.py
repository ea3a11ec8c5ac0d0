"""How work is cut, run, kept and taken up again: memory budgets and progress."""
