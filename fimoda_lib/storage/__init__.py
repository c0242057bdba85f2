"""Where are results kept, under which names, and how are they found again?"""
