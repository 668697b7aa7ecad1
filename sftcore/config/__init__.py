"""What a user writes: recipes, SFTConfig and the choice of plugins, with the checks that need no heavy library."""
