"""Speed, memory and accuracy next to those of other packages."""
