"""What gradients, Gramians and fronts say: diagnostics, the papers' theorems, Pareto fronts."""
