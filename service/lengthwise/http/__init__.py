"""HTTP: connections, the application with its routes, and the process with its ordered end."""
