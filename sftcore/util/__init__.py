"""Small helpers that every layer may use: full disks, secrets, and values that JSON can hold."""
