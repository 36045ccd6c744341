"""Which method solves a differential equation best, in equal seconds?"""
