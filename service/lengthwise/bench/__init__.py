"""`lengthwise bench`: load with lengths as they occur, and what a service made of it. Begin with `command`."""
