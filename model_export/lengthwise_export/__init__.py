"""The exporter: masked sequence models in, verified model directories out."""
