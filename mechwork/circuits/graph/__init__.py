"""The computational graph: its space of edges, circuits as values, running the model as a circuit, files."""
