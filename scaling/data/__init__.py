"""Clips, photos or moving leaves to token shards, and shards to batches."""
