"""Proofs that a chat template's own generation markers enclose what the assistant writes, and nothing else."""
