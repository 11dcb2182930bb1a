"""Moving a kept-alive connection from one worker to another, between two requests."""
