"""Which training examples made a model say what it said: exact TracIn for any PyTorch model."""
