"""`python -m lengthwise`: the command `lengthwise`."""

from lengthwise.cli import main

if __name__ == "__main__":
    main(prog_name="lengthwise")
