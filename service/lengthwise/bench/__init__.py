"""`lengthwise bench`: puts load with realistic lengths on a service, and measures it. Begin with `trial`."""
