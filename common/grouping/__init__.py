"""Groups of tasks: data, what each group gains, what foretells it, and how forecasts are judged."""
