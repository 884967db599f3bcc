"""Adapters of `lengthwise.Scorer` for engines that exist: `ray` (Ray Data), `spark` (PySpark), `beam` (Apache Beam)."""
