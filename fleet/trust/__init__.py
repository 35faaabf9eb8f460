"""The Update Framework on our side: keys, and the repository that the coordinator signs."""
