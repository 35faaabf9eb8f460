"""The coordinator's doors: one for devices, one for the operator, and a gate before both."""
