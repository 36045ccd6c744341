"""Several rewards of one policy: does a rule do better than their sum?"""
