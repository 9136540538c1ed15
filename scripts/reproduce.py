"""The command ``reproduce``."""

import sys

from handgrad.reproduction.command import main

if __name__ == "__main__":
    sys.exit(main())
