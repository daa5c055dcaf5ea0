"""The weights in one file, whichever of the two kinds it is."""

from pathlib import Path

from torch import Tensor

from tracin.checkpoints.readers.safetensors import read_safetensors
from tracin.checkpoints.readers.torch import read_torch
from tracin.checkpoints.state_dict import weights_within


def read_weight_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of what `torch.save` wrote, by bare names."""
    is_safetensors = file.suffix.lower() == ".safetensors"
    return weights_within(read_safetensors(file) if is_safetensors else read_torch(file), str(file))
