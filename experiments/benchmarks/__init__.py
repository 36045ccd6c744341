"""Speed, memory and accuracy of the parts that every step uses."""
