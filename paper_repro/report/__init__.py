"""What all reproductions share: findings, figures, intervals, the cache and the page."""
