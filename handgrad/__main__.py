"""``python -m handgrad``: the command ``handgrad``."""

import sys

from handgrad.commands import main

if __name__ == "__main__":
    sys.exit(main())
