"""Control: many tasks for one policy, from exact policy gradients to soft actor–critic."""
