"""The command ``train-mlp-numpy``."""

import sys

from handgrad.backends.command import train_mlp_numpy

if __name__ == "__main__":
    sys.exit(train_mlp_numpy())
