"""`python -m smollm3` is the `smollm3` command."""

import sys

from smollm3.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
