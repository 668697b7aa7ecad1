"""Small helpers that every layer may use: full disks, secrets, values as JSON can hold them and as errors show them."""
