"""What stops a run or names the rows at fault: NaN, divergence and signals."""
