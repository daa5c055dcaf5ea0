"""The gradient index: gradients sketched once, kept on disk, searched often."""
