"""Which domains help a target of which there is little data?"""
