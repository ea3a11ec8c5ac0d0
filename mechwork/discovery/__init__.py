"""A discovery: from a model and a task to everything the report shows."""
