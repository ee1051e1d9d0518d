"""`python -m jmeta`."""

import sys

from jmeta.cli import main

if __name__ == "__main__":
    sys.exit(main())
