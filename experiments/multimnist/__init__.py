"""Two overlaid digits: does one network pay, in which architectures, and what does PCGrad add?"""
