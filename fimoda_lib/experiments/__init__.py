"""What does the paper run, with which settings, and what has been computed of it?"""
