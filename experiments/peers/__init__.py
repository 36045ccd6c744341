"""What the aggregators of other libraries answer to a dozen Jacobians, next to their papers."""
