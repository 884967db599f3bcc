"""`python -m lengthwise`: the command `lengthwise`."""

import os
import sys

if __name__ == "__main__":
    # Started in the folder of this package, Python would take its `http` for that of the standard library.
    own = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != own]
    from lengthwise.commands.cli import main

    main(prog_name="lengthwise")
