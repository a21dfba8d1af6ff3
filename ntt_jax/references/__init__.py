"""References: which annotations serve, how they are read, and which of them to doubt."""
