"""The kernels in C: recurrent layers over valid steps, in float32 and in 8-bit integers."""
