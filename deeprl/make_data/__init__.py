"""Making datasets: recording policies, corrupting what was recorded."""
