"""What is kept for the backward pass, where, and what is made again."""
