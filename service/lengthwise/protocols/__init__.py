"""The protocols of inference: `/predict`, KServe's v1 and v2, each decoded into the same call."""
