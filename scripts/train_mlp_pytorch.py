"""The command ``train-mlp-pytorch``."""

import sys

from handgrad.backends.command import train_mlp_pytorch

if __name__ == "__main__":
    sys.exit(train_mlp_pytorch())
