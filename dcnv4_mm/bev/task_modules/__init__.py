"""Coding of boxes, and assignment of predictions to objects."""
