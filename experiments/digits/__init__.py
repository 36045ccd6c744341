"""Two overlaid handwritten digits, one network: what do the rules change on real data?"""
