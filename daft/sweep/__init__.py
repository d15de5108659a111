"""Many runs: which comes next, which rates win, and who computes them."""
