"""The front door: TracIn over data, and its results."""
