"""Authentication: realms, and who answers for them."""
