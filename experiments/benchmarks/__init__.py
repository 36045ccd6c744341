"""Speed, memory and accuracy beside those of other packages."""
