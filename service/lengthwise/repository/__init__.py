"""The models that are served: found in a folder, judged, opened, and replaced while requests come in."""
