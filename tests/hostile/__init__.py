"""What an enemy sends: sockets by hand, no client library, while memory, files and other callers are watched."""
