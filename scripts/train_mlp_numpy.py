"""The command ``train-mlp-numpy``."""

import sys

from handgrad.backends.mlp_numpy import main

if __name__ == "__main__":
    sys.exit(main())
