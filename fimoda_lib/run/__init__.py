"""How is everything computed with one command, on one machine or many?"""
