"""Those who act: the supervisor's loop and its actors."""
