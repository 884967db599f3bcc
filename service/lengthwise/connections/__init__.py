"""Connections, whatever protocol they carry: accepted, limited, secured and closed."""
