"""Gradient-based meta-learning: adaptation changes the parameters."""
