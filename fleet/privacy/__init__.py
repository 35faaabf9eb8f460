"""What may be learned about one example: the accounting, the noise and the release path."""
