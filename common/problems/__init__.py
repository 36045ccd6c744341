"""Problems that experiments and reproductions share."""
