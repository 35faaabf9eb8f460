"""What both sides agree on: values and decisions. No network, no database, no clock of its own."""
