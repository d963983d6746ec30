"""Studies: the claims that each of them judges its runs by."""
