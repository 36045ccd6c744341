"""Is a conflict of two tasks real, or the noise of a batch?"""
