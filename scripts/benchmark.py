"""The command ``benchmark``."""

import sys

from handgrad.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
