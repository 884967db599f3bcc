"""The console: the page for people at `/`, and what it asks for."""
