"""What a pass computes: the rows it takes, the cache they read, the stage that runs them, a file a family of models."""
