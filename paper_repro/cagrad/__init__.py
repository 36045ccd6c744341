"""CAGrad (Liu et al. 2021), one question a file."""
