"""``python -m mechwork.cli`` is the command `mechwork`."""

import sys

from .entry import main

if __name__ == "__main__":
    sys.exit(main())
