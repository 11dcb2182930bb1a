"""What the supervisor knows of its processes; acts on nothing."""
