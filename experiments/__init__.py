"""The paper's experiments, thin programs on the public surface of tracin."""
