"""Which figures, tables and claims does the paper make, what goes beyond it, and what came out?"""
