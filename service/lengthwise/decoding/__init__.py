"""From bytes to sequences: JSON bodies, JSON Lines and files of labelled sequences."""
