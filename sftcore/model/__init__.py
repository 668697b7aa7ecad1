"""Loading a model, fitting it to its tokenizer, and binding loss, kernels, precision and attention to it."""
