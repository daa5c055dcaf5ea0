"""Checks of what callers pass."""
