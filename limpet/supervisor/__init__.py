"""The supervisor's loop, and the actors that carry out what fleet/ decides."""
