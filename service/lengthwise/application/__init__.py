"""The application and its routes: operations with their schema, probes, keys, pages for browsers."""
