"""What a CPU computes faster than by the library that torch chooses."""
