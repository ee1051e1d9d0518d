"""Inner loops: adaptation, and its differentiable replay on stored data."""
