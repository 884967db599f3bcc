"""The service: variable-length sequences in, answers out, almost no padding computed."""
