"""The command ``train-convnet-numpy``."""

import sys

from handgrad.backends.command import train_convnet_numpy

if __name__ == "__main__":
    sys.exit(train_convnet_numpy())
