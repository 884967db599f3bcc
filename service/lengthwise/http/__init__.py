"""HTTP connections: requests read within bounds, ordinary calls answered without ASGI."""
