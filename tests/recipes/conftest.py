"""What is here runs in a copy of the house, by tests/test_recipes.py."""

collect_ignore_glob = ["*/tests/*"]
