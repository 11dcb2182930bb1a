"""Session ids that the server makes: affinity cookies, minted ids and learned ids."""
