"""The service under fire: chaos, overload, broken surroundings."""
