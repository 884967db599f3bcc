"""Runs the command `lengthwise`: `python -m lengthwise`."""

import os
import sys

if __name__ == "__main__":
    # In the folder of this package, Python would import its `http` in the place of the standard library's.
    package_folder = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [entry for entry in sys.path if not os.path.isabs(entry) or os.path.realpath(entry) != package_folder]
    from lengthwise.commands.cli import main

    main(prog_name="lengthwise")
