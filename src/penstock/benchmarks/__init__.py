"""What `penstock bench` measures, and draws."""
