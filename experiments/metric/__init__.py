"""Does a rule keep its promise under the optimizer that people step with?"""
