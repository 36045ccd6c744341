"""GradNorm (Chen et al. 2018), one question a file."""
