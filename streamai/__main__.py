"""`python -m streamai` is the command `streamai`."""

import sys

from streamai.cli import main

if __name__ == "__main__":
    sys.exit(main())
