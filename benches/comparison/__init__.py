"""What `benches/compare` is made of: rows, servers, runs and the table."""
