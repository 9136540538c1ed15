"""The command ``check-gradients``."""

import sys

from handgrad.checker.command import main

if __name__ == "__main__":
    sys.exit(main())
