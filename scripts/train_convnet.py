"""The command ``train-convnet``."""

import sys

from handgrad.backends.convnet_torch import main

if __name__ == "__main__":
    sys.exit(main())
