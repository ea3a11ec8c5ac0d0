"""Scores of edges, nodes, neurons and positions: one estimator at several grains."""
