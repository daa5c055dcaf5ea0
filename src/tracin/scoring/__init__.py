"""Exact scores: passes over checkpoints and batches."""
