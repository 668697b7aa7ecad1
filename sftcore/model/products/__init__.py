"""How products of float32 matrices are computed: by which library, and in how many digits."""
