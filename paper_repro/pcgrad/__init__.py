"""PCGrad (Yu et al. 2020), one question a file."""
