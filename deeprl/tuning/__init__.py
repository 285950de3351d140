"""Search for settings, with seeds to tune on and others to test on."""
