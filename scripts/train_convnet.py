"""The command ``train-convnet``."""

import sys

from handgrad.backends.command import train_convnet

if __name__ == "__main__":
    sys.exit(train_convnet())
