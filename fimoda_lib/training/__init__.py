"""How is a model trained, and trained further without an instance: the gold standard?"""
