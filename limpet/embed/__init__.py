"""`limpet.listen`, `Cluster` and `Handle`: a server that a program starts."""
