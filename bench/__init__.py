"""What ``make bench`` runs; see README.md."""
