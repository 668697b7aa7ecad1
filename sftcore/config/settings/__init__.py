"""What the fields of SFTConfig may hold, alone and together."""
