"""`python -m physml` is the command `physml`."""

import sys

from physml.cli import main

if __name__ == "__main__":
    sys.exit(main())
