"""One picture or table per kind of result."""
