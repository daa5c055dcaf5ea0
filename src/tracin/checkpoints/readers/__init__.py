"""Readers: one for each kind of file or folder that holds a checkpoint."""
