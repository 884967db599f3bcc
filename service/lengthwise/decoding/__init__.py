"""From the bytes of a call to sequences: JSON bodies, and the options of a call."""
