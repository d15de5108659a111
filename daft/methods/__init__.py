"""What a method does to a network before and while it is trained."""
