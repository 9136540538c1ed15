"""The command ``plot-runs``."""

import sys

from handgrad.plot_runs import main

if __name__ == "__main__":
    sys.exit(main())
