"""Connections under any protocol: accepting, limiting, TLS, draining and closing."""
