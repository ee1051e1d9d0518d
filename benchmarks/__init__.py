"""Measurements of jmeta: what it learns, and how fast. Each module is a command."""
