"""From the bytes of a call to sequences: JSON bodies, Arrow streams, and the options of a call."""
