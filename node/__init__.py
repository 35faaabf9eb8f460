"""The device: answers, learns privately, verifies what it pulls, and goes back if it disappoints."""
