"""Sockets, whatever protocol they carry: taken, bounded, secured and closed."""
