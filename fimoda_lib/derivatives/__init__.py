"""How does a model, or a run of further training, answer to one training instance?"""
