"""Circuits found by search: cutting edges one by one, or learning a mask."""
