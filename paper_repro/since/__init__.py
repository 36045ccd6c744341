"""What the field has said of these methods since 2022, one question a file."""
