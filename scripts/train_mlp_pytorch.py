"""The command ``train-mlp-pytorch``."""

import sys

from handgrad.backends.mlp_torch import main

if __name__ == "__main__":
    sys.exit(main())
