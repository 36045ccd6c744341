"""What the texts say of each other, one question a file."""
