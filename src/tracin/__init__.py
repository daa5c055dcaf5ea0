"""Which training examples made a model say what it said: exact TracIn for any PyTorch model.

The public names are in `__init__.pyi`, once; each is looked up when first used, so that the command
line's help does not wait for torch.
"""

import logging

import lazy_loader

# What to show of it is the program's choice: https://docs.python.org/3/howto/logging.html
logging.getLogger(__name__).addHandler(logging.NullHandler())

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
