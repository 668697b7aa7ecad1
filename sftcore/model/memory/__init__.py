"""What is kept for the backward pass, and where: gradient checkpointing, offloading and the heap."""
