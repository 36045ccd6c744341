"""A main task with few labels among auxiliary ones: do the rules keep it in view?"""
