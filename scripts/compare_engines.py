"""The command ``compare-engines``."""

import sys

from handgrad.lockstep.command import main

if __name__ == "__main__":
    sys.exit(main())
