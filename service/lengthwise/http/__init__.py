"""HTTP: connections, the application with its routes, and the server process with its shutdown."""
