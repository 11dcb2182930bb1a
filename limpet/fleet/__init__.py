"""What the supervisor knows about its processes. This package only records and answers; supervisor/ acts."""
